"""Train one part of the shapes world, or measure what was trained: `python tools/train.py STAGE`."""

import argparse
import importlib
import json
import logging
import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts"))

STAGES = {
    "vae": ("vae", "run"),
    "decoder": ("vae", "run_decoder"),
    "text": ("text", "run"),
    "cliptext": ("clip", "run_text"),
    "clip": ("clip", "run"),
    "flux": ("generator", "run"),
    "sd3": ("generator", "run"),
    "blip": ("captioner", "run"),
    "tune-flux": ("tune", "run_generator"),
    "tune-sd3": ("tune", "run_generator"),
    "tune-blip": ("tune", "run_captioner"),
    "acceptance": ("acceptance", "run"),
}


def main() -> None:
    """Run one stage under --out; --export only writes the model of the last checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("--out", type=Path, default=Path("results/training"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, help="steps in all, for a trial or to train on; default: the stage's own")
    parser.add_argument("--export", action="store_true", help="write the last checkpoint's model, train no further")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")

    import torch

    torch.set_num_threads(arguments.threads)
    stage, out = arguments.stage, arguments.out
    name, function = STAGES[stage]
    module = importlib.import_module(f"training.{name}")
    if stage == "acceptance":
        summary = module.run(out)
    elif arguments.export:
        summary = module.export(stage, out)
    else:
        settings = module.SETTINGS[stage]
        summary = getattr(module, function)(stage, out, replace(settings, steps=arguments.steps or settings.steps))
    print(json.dumps(summary, indent=1))


if __name__ == "__main__":
    main()
