"""What a table of facts can say, and which class has one."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module

# Classes of diffusers' transformers and pipelines, each with its module.
TABLES = {
    "AuraFlowTransformer2DModel": "ditscope.models.facts.auraflow",
    "ChromaTransformer2DModel": "ditscope.models.facts.chroma",
    "Flux2Transformer2DModel": "ditscope.models.facts.flux2",
    "Flux3Transformer2DModel": "ditscope.models.facts.flux3",
    "HiDreamImageTransformer2DModel": "ditscope.models.facts.hidream",
    "Ideogram4Transformer2DModel": "ditscope.models.facts.ideogram4",
    "Krea2Transformer2DModel": "ditscope.models.facts.krea2",
    "Lumina2Transformer2DModel": "ditscope.models.facts.lumina2",
    "QwenImage21Transformer2DModel": "ditscope.models.facts.qwen_image21",
    "ZImageTransformer2DModel": "ditscope.models.facts.z_image",
}


@dataclass(frozen=True)
class Facts:
    """What is told of one class; what is empty can be found, or has the usual value."""

    order: tuple[str, ...] = ()  # its lists of blocks as they run, where the module tree has another order
    # Lists of blocks whose one output is a joint stream, each with the place of its text tokens: first or last; empty:
    # no one place, so that the stream is not parted.
    joint: Mapping[str, str] = field(default_factory=dict)
    ragged: bool = False  # rows of a batch are joined each at its own text length: one position does not fit all
    negated: bool = False  # the pipeline negates the prediction before the scheduler takes it
    time: str = ""  # what the transformer is told of the noise level, where that is not the scheduler's timestep


def facts_of_class(name: str) -> Facts:
    """What is told of a class of diffusers, by its name; nothing where it has no table."""
    facts: Facts = import_module(TABLES[name]).FACTS if name in TABLES else Facts()
    return facts
