"""Settings of the stage `plan`."""

from dataclasses import dataclass

from ditscope.core.settings import setting


@dataclass(frozen=True)
class Budget:
    """How large a plan may be: exactly one of mean_bits, bytes, uniform_bits and latency_ms, the others 0."""

    mean_bits: float = setting(
        0.0, "Mean bits per quantized weight, scales and zero points included (by step: of the weights in use)"
    )
    bytes: int = setting(0, "Nominal bytes of the quantized layers (by step: of every variant that is kept)")
    uniform_bits: int = setting(0, "As large as every layer at this bit width", most=16)
    latency_ms: float = setting(
        0.0, "With `formats`: measured milliseconds of all linear layers in a step of one picture, one call each"
    )
    formats: list[str] = setting(
        [], "Entries of `schemes` to choose from, for each layer one (`base`: full precision); empty: bits"
    )
    steps: str = setting(
        "all",
        "With `formats`: all: one format for all steps; thirds: one for the early, mid and late steps each; edges: one "
        "for the first and last step, one for the others",
        choices=("all", "thirds", "edges"),
    )


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
