"""How a pipeline makes its prediction of the outputs of its transformer's calls in one step.

`linear`: the sum of the halves of guidance, each with a weight (classifier-free guidance, negation, no guidance);
`pipeline`: by the pipeline itself (rescaled guidance); `apart`: in a way that depends on earlier steps, so that the
halves are looked at side by side.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ditscope.core.errors import InputError
from ditscope.models.loading import Generator
from ditscope.models.readout import aside, guide

TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-4}  # relative; of half precision:
ROUNDED = 2e-2


def halves(output: Any, like: Tensor) -> list[Tensor]:
    """The halves of guidance in what one call put out, each in the shape of the prediction `like` (batch, ...)."""
    if isinstance(output, (tuple, list)) and not isinstance(output[0], Tensor):
        output = output[0]  # (list of pictures,)
    elif isinstance(output, tuple):
        output = output[0]
    elif hasattr(output, "sample"):
        output = output.sample
    rows, batch = list(output), len(like)
    parts = [torch.stack(rows[i : i + batch]) for i in range(0, len(rows), batch)]
    if parts[0].numel() == 2 * like.numel():  # with a variance
        parts = [part[:, : part.shape[1] // 2] for part in parts]
    return [part.reshape(like.shape) if part.numel() == like.numel() else part for part in parts]


def find(
    model: Generator, outputs: Sequence[Any], prediction: Tensor, timestep: Any, guidance: float
) -> dict[str, Any]:
    """How the pipeline came from the outputs of a step's calls to its prediction: `kind`, and `weights` of `linear`."""
    parts = [half for output in outputs for half in halves(output, prediction)]
    tolerance = TOLERANCE.get(parts[0].dtype, ROUNDED)
    if all(part.shape == prediction.shape for part in parts):
        columns = torch.stack([part.double().cpu().flatten() for part in parts], 1)
        target = prediction.double().cpu().flatten()[:, None]
        weights = torch.linalg.lstsq(columns, target).solution
        if (columns @ weights - target).norm() <= tolerance * target.norm():
            return {"kind": "linear", "weights": [round(w, 6) for w in weights.flatten().tolist()]}
    try:
        made = guide(aside(model), outputs, len(prediction), timestep, guidance)
    except InputError:  # by a count of calls that depends on earlier steps
        return {"kind": "apart"}
    same = (made.float() - prediction.float()).norm() <= tolerance * prediction.float().norm()
    return {"kind": "pipeline" if same else "apart"}


def combined(
    model: Generator, how: dict[str, Any], outputs: Sequence[Any], like: Tensor, timestep: Any, guidance: float
) -> Tensor:
    """The prediction of the outputs of a step's calls, as `find` found it; `like` has its shape. It has gradients."""
    if how["kind"] == "pipeline":
        return guide(model, outputs, len(like), timestep, guidance)
    parts = [half for output in outputs for half in halves(output, like)]
    if how["kind"] == "linear":
        return torch.stack([weight * part for weight, part in zip(how["weights"], parts, strict=True)]).sum(0)
    return torch.cat([part.flatten(1) for part in parts], dim=1)
