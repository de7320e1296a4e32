"""Settings of the stage `benchmark`."""

from dataclasses import dataclass

from ditscope.core.settings import setting
from ditscope.models.settings import COMPILE_STATES


@dataclass(frozen=True)
class Target:
    """A published latency, drawn as a line beside the measured ones; nothing is asserted of it."""

    model: str = setting(help="The model that it was measured on")
    latency_ms: float = setting(help="Milliseconds a batch", positive=True)
    batch: int = setting(1, "Images sampled together", positive=True)
    source: str = setting("", "Hardware, scheme and where it was published")


@dataclass(frozen=True)
class Benchmark:
    """Time, weigh and judge a model under one quantization scheme."""

    models: list[str] = setting([], "Models to benchmark", config_only=True)
    schemes: list[str] = setting([], "Schemes, by name in `schemes`", config_only=True)
    compile: list[str] = setting(
        ["eager"],
        "torch.compile states: eager, regional (block by block), full, and full in a mode: reduce-overhead (CUDA "
        "graphs), max-autotune (CUDA graphs, kernels chosen by timing)",
        choices=COMPILE_STATES,
        config_only=True,
    )
    compiled: list[str] = setting(
        [], "Schemes that run in the compiled states as well; empty: all of them", config_only=True
    )
    batches: list[int] = setting([1], "Batch sizes that are timed", positive=True, filled=True)
    repeats: int = setting(5, "Timed runs of each batch size", positive=True)
    warmup: int = setting(2, "Untimed runs before them")
    until_quiet: int = setting(0, "Times that a noisy measurement is repeated; the quietest one is kept")
    num_images: int = setting(16, "Images generated for the quality metrics", positive=True)
    quality_batch: int = setting(
        0, "Images sampled together for the quality metrics, under every scheme; 0: the smallest of `batches`"
    )
    num_steps: int = setting(0, "Denoising steps; 0: the model's own")
    cfg_scale: float = setting(-1.0, "Guidance; -1: the model's own", signed=True)
    skip_metrics: bool = setting(False, "Leave image quality out: latency and memory only")
    hardware: str = setting(
        "auto", "Id under which results are filed; auto: named after this host's accelerator or CPU"
    )
    features: str = setting("shapes-clip", "Embedder whose image features FID, KID and the cosine are computed on")
    cosines: list[str] = setting([], "More embedders whose image cosine is measured, as metric `cosine_NAME`")
    classes: list[str] = setting(
        [], "Inception Score: its zero-shot classes as texts, `a {red,blue} {ring,star}` for four; empty: no score"
    )
    kid_subset_size: int = setting(0, "Images of one KID subset; 0: 1,000, or all where there are fewer")
    checkpoints: list[str] = setting(
        [], "Schemes whose quantized weights are saved as well, in checkpoints/<model>/", config_only=True
    )
    targets: dict[str, Target] = setting({}, "Published latencies to draw beside the measured ones", config_only=True)
    quality_bound: float = setting(0.05, "Largest quality loss that counts as good", config_only=True)
    flat_field_steps: list[int] = setting(
        [], "Step counts of the noise-growth curve on a flat field; empty: no such curve", positive=True
    )
    flat_field_prompt: str = setting("a plain gray background", "What is asked for there")
    flat_field_seeds: int = setting(4, "Images at each of these step counts", positive=True)
