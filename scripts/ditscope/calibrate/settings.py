"""Settings of the stage `calibrate`."""

from dataclasses import dataclass

from ditscope.core.settings import setting


@dataclass(frozen=True)
class Calibrate:
    """Record the transformer's inputs along sampling trajectories, for calibration and sensitivity."""

    models: list[str] = setting([], "Models to calibrate", config_only=True)
    sources: dict[str, str] = setting(
        {}, "Calibration sets of your own by model, used instead of this stage's", config_only=True, path=True
    )
    num_images: int = setting(
        10, "Images to sample, one per prompt; the prompts repeat with new seeds where there are fewer", positive=True
    )
    num_steps: int = setting(50, "Denoising steps of each image; 0: the model's own")
    cfg_weight: float = setting(7.5, "Classifier-free guidance, <= 1 is off; guidance-distilled models keep their own")
    seed: int = setting(0, "Seed of the first image; image i uses seed + i")
    shard_size: int = setting(8, "Images of one job", positive=True, config_only=True)
    slice_size: int = setting(
        4, "Images sampled together; also the unit that an interrupted job resumes at", positive=True
    )
    format: str = setting(
        "samples", "One NPZ per step, or packed: one per image, conditioning once", choices=("samples", "packed")
    )
    statistics: str = setting("*", "Steps whose activations are measured by channel, as `0,2,-1`; empty: none")
