"""Settings of the stage `embed`."""

from dataclasses import dataclass

from ditscope.core.settings import setting


@dataclass(frozen=True)
class Embed:
    """Embed every text and image of the trajectories."""

    embedders: list[str] = setting([], "Embedders, by name in `embedders`", config_only=True)
    batch_size: int = setting(32, "Items embedded together", positive=True)
