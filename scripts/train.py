"""Train one part of the shapes world: `python scripts/train.py STAGE [--export]`."""

import argparse
import importlib
import json
import logging
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

STAGES = {
    "vae": ("vae", "run"),
    "decoder": ("vae", "run_decoder"),
    "text": ("text", "run"),
    "cliptext": ("clip", "run_text"),
    "clip": ("clip", "run"),
    "flux": ("generator", "run"),
    "sd3": ("generator", "run"),
    "blip": ("captioner", "run"),
    "acceptance": ("acceptance", "run"),
}


def main() -> None:
    """Run one stage under --out; --export only writes the model of the last checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("--out", type=Path, default=Path("results/training"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--export", action="store_true", help="write the last checkpoint's model, train no further")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")

    import torch

    torch.set_num_threads(arguments.threads)
    name, function = STAGES[arguments.stage]
    module = importlib.import_module(f"ditscope.training.{name}")
    stage = getattr(module, "export" if arguments.export else function)
    print(json.dumps(stage(arguments.stage, arguments.out), indent=1))


if __name__ == "__main__":
    main()
