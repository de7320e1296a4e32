"""Settings of the stage `generate`."""

from dataclasses import dataclass

from ditscope.core.settings import setting


@dataclass(frozen=True)
class Generate:
    """Sample one image for each run of a prompt shard."""

    models: list[str] = setting([], "Models to generate with", config_only=True)
    sources: dict[str, str] = setting(
        {},
        "Pictures of your own by model, instead of sampling it: a folder of them, or shards as this stage leaves",
        config_only=True,
        path=True,
    )
    slice_size: int = setting(
        16, "Images sampled together; also the unit that an interrupted job resumes at", positive=True
    )
