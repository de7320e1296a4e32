"""Settings of the stage `sensitivity`."""

from dataclasses import dataclass

from ditscope.core.settings import setting


@dataclass(frozen=True)
class Sensitivity:
    """Quantize one layer at a time and measure the change of the predicted velocity."""

    models: list[str] = setting([], "Models to analyse", config_only=True)
    bits: list[int] = setting([2, 3, 4, 6, 8], "Bit widths", positive=True, most=16, filled=True)
    quantizer: str = setting("group", "Weight quantizer", choices=("palettize", "group"))
    group_size: int = setting(32, "Weights that share one scale and zero point (quantizer: group)")
    buckets: str = setting(
        "thirds", "Timestep buckets: thirds of the steps, or sigma 0.7 / 0.3", choices=("thirds", "sigma")
    )
    max_images: int = setting(4, "Calibration images used; 0: all")
    step_stride: int = setting(1, "Use every n-th step", positive=True)
    batch_size: int = setting(
        16, "Samples x bit widths of one forward pass (twice the rows under guidance)", positive=True
    )
    layer_groups: int = setting(
        2, "Jobs that the layers are spread over (mode: exact)", positive=True, config_only=True
    )
    mode: str = setting(
        "exact",
        "exact: every layer on every sample; fast: from gradients of random probes",
        choices=("exact", "fast"),
    )
    probes: int = setting(
        32, "Least number of random probes in each bucket (fast mode, effect on images)", positive=True
    )
    gradient_batch: int = setting(
        0, "Samples of one backward pass (fast mode, effect on images); 0: as many as memory takes, at most 8"
    )
