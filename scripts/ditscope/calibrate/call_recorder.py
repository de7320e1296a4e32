"""Recording the calls of any transformer as a pipeline samples."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from ditscope.core.errors import InputError
from ditscope.models import guided
from ditscope.models.call_files import SUFFIX, write_calls
from ditscope.models.loading import Generator
from ditscope.models.sampling import Call, Observer, Step, transformers_of


@dataclass
class CallRecorder(Observer):
    """Writes each step's calls of the transformer, of one picture, as a calibration sample of its own file."""

    folder: Path
    image: dict[str, Any]
    calls: list[tuple[Call, Any]] = field(default_factory=list)

    def start(self, model: Generator, sigmas: Tensor, cond: Any, guidance: float) -> None:
        """Begin a run."""
        if len(transformers_of(model.pipe)) > 1:
            raise InputError(
                f"{model.name}: {type(model.pipe).__name__} denoises with two transformers (`transformer`, "
                "`transformer_2`); calibration takes one"
            )
        self.model, self.guidance = model, guidance

    def answered(self, call: Call, output: Any) -> None:
        """Keep a call until its step ends."""
        self.calls.append((call, output))

    def after(self, step: Step) -> None:
        """Write the step's sample."""
        outputs = [output for _, output in self.calls]
        timestep = float(step.timestep)
        about = {
            "image_id": self.image["image_id"],
            "prompt_id": self.image["prompt_id"],
            "step_index": step.index,
            "sigma": float(step.sigma),
            "sigma_next": float(step.sigma_next),
            "timestep": timestep,
            "guidance": self.guidance,
            "guided": guided.find(self.model, outputs, step.velocity, step.timestep, self.guidance),
        }
        name = f"{self.image['image_id']:05d}_{step.index:03d}{SUFFIX}"
        tensors = {"x": step.x, "prediction": step.velocity}
        write_calls(self.folder / name, about, [(call.args, call.options) for call, _ in self.calls], tensors)
        self.calls.clear()
