"""A transformer whose linear layers follow recipes, solved from what they are given during calibration."""

import logging
from collections.abc import Iterator, Mapping

from torch import nn
from tqdm import tqdm

from ditscope.core.errors import InputError
from ditscope.models.emulate.inputs import Measure
from ditscope.models.emulate.layer import EmulatedLinear, Recipe, emulated

log = logging.getLogger(__name__)

HESSIAN_BYTES = 4 * 2**30  # of the Hessians that are held at once; more layers take another pass over the set


def calibrated(transformer: nn.Module, recipes: Mapping[str, Recipe], measure: Measure) -> None:
    """Put an `EmulatedLinear` in place of each named layer; all are solved from inputs of the unquantized model.

    Raises InputError for a layer that calibration does not reach.
    """
    made: dict[str, EmulatedLinear] = {}
    with tqdm(total=len(recipes), desc="solving layers", unit="layer", disable=None) as bar:
        for part in parts(transformer, recipes):
            layers = {name: transformer.get_submodule(name) for name in part}
            inputs = measure(layers, any(recipe.needs == "hessian" for recipe in part.values()))
            for name, recipe in part.items():
                if name not in inputs:
                    raise InputError(f"calibration never reaches layer `{name}`; leave it out by `skip_layers`")
                layer = layers[name]
                assert isinstance(layer, nn.Linear)
                made[name] = emulated(layer, recipe, inputs.pop(name))
                bar.update()
            log.info("%d of %d layers solved", len(made), len(recipes))
    for name, layer in made.items():
        transformer.set_submodule(name, layer)


def parts(transformer: nn.Module, recipes: Mapping[str, Recipe]) -> Iterator[dict[str, Recipe]]:
    """The layers in order, as many at once as `HESSIAN_BYTES` has room for, one at least."""
    part: dict[str, Recipe] = {}
    held = 0
    for name, recipe in recipes.items():
        size = 8 * transformer.get_submodule(name).in_features ** 2 if recipe.needs == "hessian" else 0
        if part and held + size > HESSIAN_BYTES:
            yield part
            part, held = {}, 0
        part[name] = recipe
        held += size
    if part:
        yield part
