"""The modules that score layers, by a model's back end.

Each has `network_of` and `score_layers` for exact scores, `own_weight` and `collected` for those from gradients. They
are named, not imported: a torch job neither has MLX nor depends on the code for it.
"""

from importlib import import_module
from types import ModuleType

from ditscope.models.loading import Generator
from ditscope.models.settings import Model

BACK_ENDS = {"torch": "ditscope.sensitivity.on_torch", "mlx": "ditscope.sensitivity.on_mlx"}
ON_CALLS = "ditscope.sensitivity.on_calls"  # of any transformer, on recorded calls


def module_of(entry: Model) -> str:
    """The path of the module that scores the layers of a model."""
    return ON_CALLS if entry.family == "dit" else BACK_ENDS[entry.backend]


def back_end(model: Generator) -> ModuleType:
    """The module that scores the layers of this model."""
    return import_module(module_of(model.entry))
