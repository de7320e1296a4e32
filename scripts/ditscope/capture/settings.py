"""Settings of the stage `capture`."""

from dataclasses import dataclass

from ditscope.core.settings import setting


@dataclass(frozen=True)
class CaptureSet:
    """Record the output of every block at every denoising step, and decode it."""

    generations: int = setting(2, "How many runs (the first of the prompt list) to capture; 0: all")
    blocks: str = setting(
        "*", "Blocks by pattern, as `double:0,9,-1,single:*`, or by running number, as `0,-1`; -1 is the last"
    )
    steps: str = setting("*", "Steps by pattern, as `0,2,-1` or `0-3`")
    decode: list[str] = setting(
        ["x0"], "Decodes to draw: x0 (clean estimate) and / or x_prev (next noisy state)", choices=("x0", "x_prev")
    )
    should_decode_intermediates: bool = setting(True, "Decode each block's output to an image")
    add_sampling_metadata: bool = setting(True, "Write the prompt into the image's EXIF data")
    image_format: str = setting("jpg", "File type of the generated image", choices=("jpg", "png"))
    format: str = setting("safetensors", "How captures are stored", choices=("safetensors", "pt"))
    store: str = setting(
        "tensors", "Keep whole tensors, or only their pooled statistics", choices=("tensors", "statistics")
    )
    max_bytes: int = setting(2_000_000_000, "Refuse a capture set that would take more bytes than this", positive=True)
    offload: bool = setting(False, "Keep the text encoders in host memory")
    multi_gpu: bool = setting(False, "Give each component a GPU of its own")


@dataclass(frozen=True)
class Capture:
    """Which models are captured, and how."""

    models: list[str] = setting([], "Models to capture", config_only=True)
    sources: dict[str, str] = setting(
        {},
        "Captures of your own by model, instead of its capture sets: folders of generations, or single .pt files",
        config_only=True,
        path=True,
    )
    sets: dict[str, CaptureSet] = setting(
        {}, "Capture sets by name; each model is captured under each", config_only=True
    )
