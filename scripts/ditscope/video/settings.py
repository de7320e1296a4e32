"""Settings of the stage `video`."""

from dataclasses import dataclass

from ditscope.core.settings import setting

FORMATS = {"gif": ".gif", "mp4": ".mp4", "mp4-h265": ".mp4"}  # suffix of a film by `output_format`


@dataclass(frozen=True)
class Video:
    """Draw captures and trajectories as moving pictures and sheets."""

    output_format: str = setting(
        "gif",
        "Container: gif, mp4 (H.264), mp4-h265; a command's `--out` says by its suffix which of the first two",
        choices=tuple(FORMATS),
    )
    fps: float = setting(2.0, "Frames per second", positive=True)
    hold_seconds: float = setting(
        1.0, "How much longer the first and the last frame of a page of trajectories stay", most=60
    )
    resolution: str = setting(
        "4k",
        "Frames and sheets are at most 1920 x 1080 (hd) or 3840 x 2160 pixels (4k)",
        choices=("hd", "4k"),
    )
    block_type: str = setting("", "Only this type of block (double, single, joint); empty or None: all")
    max_blocks: int = setting(0, "Most blocks of a step, in network order; 0: all")
    decode: str = setting("x0", "Which decode of a capture is shown", choices=("x0", "x_prev"))
    max_generations: int = setting(4, "Most generations side by side in the video of a capture set", positive=True)
    font_size: int = setting(24, "Size of the overlay's text in pixels", positive=True)
    tile_size: int = setting(
        256, "Longer side of a picture in pixels, less where more of them are to fit", positive=True
    )
    min_tile_size: int = setting(
        64, "Smallest tile of the trajectory mosaic; what does not fit goes to further pages of the film", positive=True
    )
    prompt_order: list[str] = setting([], "Prompt ids in the order of the rows; empty, and the others: as in the CSV")
    jump_embedder: str = setting(
        "", "Embedder whose semantic jumps are marked in the film of trajectories; empty: the first in `drift.jumps`"
    )
    timeline_images: int = setting(8, "Pictures of a run in the timeline sheet, evenly spaced", positive=True)
    sheet_format: str = setting("png", "Kind of the timeline sheets and strips", choices=("png", "jpg"))
