#!/usr/bin/env bash
# DiffusionKit pins an old mlx, which has no Linux wheel; its MMDiT runs with the one in mlx.yaml. argmaxtools, which it
# imports, asks for wandb without needing it here. Both are therefore installed without their dependencies.
set -euo pipefail
python -m pip install --no-deps diffusionkit==0.5.2 argmaxtools==0.1.23
