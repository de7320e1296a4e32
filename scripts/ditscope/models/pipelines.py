"""Which pipelines of the installed diffusers are driven (`family: dit`), and why the others are not: by reading them.

A pipeline is driven where the seams of `models.sampling` hold: one transformer that its `__call__` calls, one scheduler
whose `step` it calls and that has noise levels, `encode_prompt`, a text as the only thing that it must be given.
"""

import inspect
import re
from functools import cache
from typing import Any, get_args

GIVEN = (  # arguments by which a pipeline is given a picture, a film or a sound to start from
    "image", "images", "mask_image", "control_image", "video", "input_images", "source_image", "reference_image",
    "pose_video", "face_video", "control_video",
)  # fmt: skip
# In the name of a pipeline that is made for that, though its arguments may be left out.
EDITS = re.compile(r"Edit|Inpaint|Img2Img|ImageTo|VideoTo|I2V|Control|Refiner|Layered|Fill|VACE")
SOUND = ("vocoder", "audio_vae", "audio_scheduler", "audio_encoder", "audio_tokenizer")
CONTROLS = ("controlnet", "control_net", "t2i_adapter", "adapter", "image_adapter")


def pipelines() -> dict[str, Any]:
    """Every class of the installed diffusers that is named as a pipeline, by name."""
    import diffusers

    names = [name for name in sorted(dir(diffusers)) if name.endswith("Pipeline") and name != "DiffusionPipeline"]
    return {name: getattr(diffusers, name) for name in names}


def verdicts() -> dict[str, str]:
    """Why each pipeline is not driven; empty for those that are."""
    return {name: refusal(cls) for name, cls in pipelines().items()}


def refusal(cls: Any) -> str:
    """Why a class of pipelines cannot be driven; empty where it can."""
    from diffusers import DiffusionPipeline, ModularPipeline

    if missing := getattr(cls, "_backends", None):
        return f"needs {', '.join(missing)}, which the lock has not" if not issubclass(cls, DiffusionPipeline) else ""
    if issubclass(cls, ModularPipeline):
        return "modular: it has no `__call__` of its own to watch"
    if not issubclass(cls, DiffusionPipeline) or not defines_call(cls):
        return "a base class, which samples nothing itself"
    return next(filter(None, (check(cls) for check in CHECKS)), "")


def defines_call(cls: Any) -> bool:
    """Whether a class of pipelines can be called."""
    return "__call__" in {name for c in cls.__mro__ for name in vars(c)}


@cache
def source(cls: Any) -> str:
    """The text of a pipeline's `__call__`."""
    return inspect.getsource(inspect.unwrap(cls.__call__))


def components(cls: Any) -> dict[str, inspect.Parameter]:
    """What a pipeline is made of: the parameters of its `__init__`."""
    return dict(inspect.signature(cls.__init__).parameters)


def arguments(cls: Any) -> dict[str, inspect.Parameter]:
    """What a pipeline's `__call__` takes."""
    return dict(inspect.signature(cls.__call__).parameters)


# Checks: each gives a reason, or nothing ------------------------------------------------------------------------------


def network(cls: Any) -> str:
    """Its denoising network is a transformer, and it is the one that is called."""
    parts = components(cls)
    if "transformer" not in parts:
        others = [name for name in ("unet", "prior", "decoder", "text_unet", "model", "prior_pipe") if name in parts]
        if "unet" in parts:
            return "denoises with a U-Net" + (" (`family: sdxl` samples it)" if is_sdxl(cls) else "")
        return f"has no transformer (`{others[0]}` in its place)" if others else "has no transformer"
    if not re.search(r"self\.transformer\(|current_model\(|self\.transformer\.forward", source(cls)):
        return "its `__call__` calls no `transformer`"
    return ""


def is_sdxl(cls: Any) -> bool:
    """Whether it is the one pipeline with a U-Net that is sampled."""
    return str(cls.__name__) == "StableDiffusionXLPipeline"


def sound(cls: Any) -> str:
    """It makes pictures or films, and no sound."""
    if "AudioPipelineOutput" in source(cls):
        return "makes sound"
    made = [part for part in SOUND if part in components(cls)]
    return f"makes sound beside the film (`{made[0]}`)" if made else ""


def text(cls: Any) -> str:
    """It is given a text, which `encode_prompt` encodes."""
    if "prompt" not in arguments(cls):
        return "takes no text"
    if not hasattr(cls, "encode_prompt"):
        return "has no `encode_prompt`, so that a text would be encoded at each call"
    return ""


def picture(cls: Any) -> str:
    """It is given nothing but a text: no picture to edit, no controls."""
    if control := [part for part in CONTROLS if part in components(cls)]:
        return f"is controlled by a picture (`{control[0]}`)"
    for name in (name for name in GIVEN if name in arguments(cls)):
        if not optional(cls, name):
            return f"starts from a picture or film that is given (`{name}`)"
    return "is made to start from a picture or film that is given" if EDITS.search(cls.__name__) else ""


def optional(cls: Any, argument: str) -> bool:
    """Whether a pipeline runs without an argument: it may be None, and `__call__` asks whether it is."""
    if arguments(cls)[argument].default is not None:
        return False
    return bool(re.search(rf"{argument} is (not )?None|\bif (not )?{argument}\b", source(cls)))


def steps(cls: Any) -> str:
    """It takes steps of a scheduler that has noise levels."""
    if "self.scheduler.step(" not in source(cls):
        return "calls no `scheduler.step`"
    if "num_inference_steps" not in arguments(cls):
        return "takes no number of steps (`num_inference_steps`)"
    kinds = schedulers(cls)
    if kinds and not any(map(has_levels, kinds)):
        return f"its scheduler, {kinds[0].__name__}, has no noise levels (`sigmas` or `alphas_cumprod`)"
    return ""


def schedulers(cls: Any) -> list[Any]:
    """The classes of schedulers that a pipeline names for itself; none where it takes any of diffusers' own."""
    from diffusers import SchedulerMixin

    named = components(cls)["scheduler"].annotation if "scheduler" in components(cls) else None
    kinds = [kind for kind in get_args(named) or (named,) if inspect.isclass(kind) and kind is not SchedulerMixin]
    return [kind for kind in kinds if issubclass(kind, SchedulerMixin)]


@cache
def has_levels(kind: Any) -> bool:
    """Whether a scheduler holds its noise levels, as `sigmas` or cumulated alphas, as its code says."""
    return any(name in inspect.getsource(kind) for name in ("self.sigmas", "self.alphas_cumprod"))


def seams(cls: Any) -> str:
    """Its noise comes from generators that are given, and its latents can be had."""
    for name in ("generator", "output_type"):
        if name not in arguments(cls):
            return f"takes no `{name}`"
    if "perturbed_attention_guidance" in source(cls):
        return "changes attention inside its transformer (perturbed-attention guidance); take the plain pipeline"
    return ""


CHECKS = (network, sound, text, picture, steps, seams)
