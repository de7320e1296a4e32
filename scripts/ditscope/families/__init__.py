"""Model families: one module of pure functions for each architecture, all with the same names and signatures.

Every generator family offers `load`, `uses_cfg`, `encode`, `latent_shape`, `decode` and `blocks`. One that samples by
flow matching has `sigmas` and `velocity`, which the one sampling loop integrates; any other has its own `sample`. One
whose blocks can be captured and scored one by one has `block_streams` and `project` too (`models.WITH_BLOCKS`). Latents
are (batch, channels, height, width), with the frames of a video before the height, whatever tokens the
transformer wants.
"""
