"""Any diffusion transformer of diffusers, by the pipeline that its folder names: nothing here is about one of them.

Blocks and streams are found (`models.structure`), and latents stay as the pipeline holds them while it samples.
"""

import numpy as np
from PIL import Image

from ditscope.core.films import mp4_bytes
from ditscope.models.structure import blocks

__all__ = ["AS_HELD", "T5", "blocks", "film"]

T5 = ""
AS_HELD = True  # latents, as tokens or as maps
FPS = 24


def film(frames: np.ndarray) -> bytes:
    """Frames (frames, height, width, 3) uint8 as an MP4."""
    return mp4_bytes([Image.fromarray(frame) for frame in frames], FPS)
