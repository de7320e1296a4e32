"""Settings of the stage `plan`."""

from dataclasses import dataclass

from ditscope.core.settings import setting


@dataclass(frozen=True)
class Budget:
    """How large a bit plan may be: exactly one of these, the others 0."""

    mean_bits: float = setting(0.0, "Mean bits per quantized weight, scales and zero points included")
    bytes: int = setting(0, "Nominal bytes of the quantized layers")
    uniform_bits: int = setting(0, "As large as every layer at this bit width", most=16)


@dataclass(frozen=True)
class Plan:
    """Choose bits for every layer by an integer program under a size budget."""

    budgets: dict[str, Budget] = setting({}, "Budgets by name", config_only=True)
    metric: str = setting(
        "auto",
        "Sensitivity that is summed; auto: image_rms where it was measured, else relative_l2",
        choices=("auto", "image_rms", "relative_l2", "sqnr_db", "psnr_db"),
    )
    min_bits: int = setting(2, "Fewest bits that a layer may get", positive=True, most=16)
    floors: dict[str, int] = setting({}, "Fewest bits by kind of layer, as {modulation: 4}", positive=True, most=16)
