"""ditscope: a microscope for diffusion transformers."""

import logging

__version__ = "0.1.0"

# torchao 0.18 registers two enums in a way that torch 2.13 warns of, and has moved tensor classes that diffusers 0.42
# looks for; nothing here uses either, so that the first lines of every command are its own.
for name in ("torch.utils._pytree", "diffusers.quantizers.torchao.torchao_quantizer"):
    logging.getLogger(name).setLevel(logging.ERROR)
