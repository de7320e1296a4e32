"""Settings of the stage `blocks`."""

from dataclasses import dataclass

from ditscope.core.settings import setting


@dataclass(frozen=True)
class Blocks:
    """Describe what each block of captured generations does."""

    psnr_db: float = setting(20.0, "A clean estimate shows the picture from this PSNR to it on")
    feature_distance: float = setting(0.1, "... and from this cosine distance of image features on")
    features: str = setting("", "Embedder of images that the features are made with; empty: PSNR only")
