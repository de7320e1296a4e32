"""The modules that score layers, by a model's back end.

Each has `network_of` and `score_layers` for exact scores, `own_weight` and `collected` for those from gradients. They
are named, not imported: a torch job neither has MLX nor depends on the code for it.
"""

from importlib import import_module
from types import ModuleType

from ditscope.models.loading import Generator

BACK_ENDS = {"torch": "ditscope.sensitivity.on_torch", "mlx": "ditscope.sensitivity.on_mlx"}
ON_CALLS = "ditscope.sensitivity.on_calls"  # of any transformer, on recorded calls


def back_end(model: Generator) -> ModuleType:
    """The module that scores the layers of this model."""
    return import_module(ON_CALLS if model.entry.family == "dit" else BACK_ENDS[model.entry.backend])
