"""Train one part of the shapes world: `python scripts/train.py vae|text|clip|flux|sd3|blip|acceptance [--export]`."""

import argparse
import importlib
import json
import logging
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

MODULES = {
    "vae": "vae",
    "text": "text",
    "clip": "clip",
    "flux": "generator",
    "sd3": "generator",
    "blip": "captioner",
    "acceptance": "acceptance",
}


def main() -> None:
    """Run one stage under --out; --export only writes the model of the last checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stage", choices=MODULES)
    parser.add_argument("--out", type=Path, default=Path("results/training"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--export", action="store_true", help="write the last checkpoint's model, train no further")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")

    import torch

    torch.set_num_threads(arguments.threads)
    module = importlib.import_module(f"ditscope.training.{MODULES[arguments.stage]}")
    stage = module.export if arguments.export else module.run
    print(json.dumps(stage(arguments.stage, arguments.out), indent=1))


if __name__ == "__main__":
    main()
