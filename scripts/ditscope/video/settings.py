"""Settings of the stage `video`."""

from dataclasses import dataclass

from ditscope.core.settings import setting


@dataclass(frozen=True)
class Video:
    """Draw captures, trajectories and refinements as moving pictures."""

    output_format: str = setting("gif", "Container", choices=("gif", "mp4"))
    fps: float = setting(2.0, "Frames per second", positive=True)
    block_type: str = setting("", "Only this type of block (double, single, joint); empty or None: all")
    max_blocks: int = setting(0, "Most blocks of a step, in network order; 0: all")
    decode: str = setting("x0", "Which decode of a capture is shown", choices=("x0", "x_prev"))
    max_generations: int = setting(4, "Most generations side by side in the video of a capture set", positive=True)
    font_size: int = setting(24, "Size of the overlay's text in pixels", positive=True)
    tile_size: int = setting(256, "Side of a tile of the trajectory mosaic in pixels", positive=True)
    prompt_order: list[str] = setting([], "Prompt ids in the order of the mosaic's rows; empty: as in the CSV")
