"""torchao, through diffusers: a checkpoint folder of the quantized transformer that `from_pretrained` reloads.

`config.json` holds a `quantization_config` of `quant_method: torchao`, whose `quant_type` is an `FqnToConfig`: each
layer's name with its own config. Sources: diffusers 0.42.1, `quantizers/quantization_config.py` (`TorchAoConfig`);
torchao 0.18.0, `FqnToConfig`.
"""

import shutil
from collections import OrderedDict
from pathlib import Path

from diffusers import TorchAoConfig
from torchao.quantization import FqnToConfig

from ditscope.models.exports.format import Export

VERSION = "diffusers 0.42, torchao 0.18"


def write(export: Export, out: Path) -> str:
    """Quantize the transformer as the plan says and save it as the folder `out`."""
    quantized = export.weights(quantization_config=TorchAoConfig(FqnToConfig(OrderedDict(export.configs))))
    unfinished = out.with_name(f".{out.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    quantized.save_pretrained(unfinished)
    unfinished.rename(out)
    name, dtype = type(export.transformer).__name__, export.dtype
    return f"reload it with diffusers.{name}.from_pretrained({str(out)!r}, torch_dtype={dtype})"
