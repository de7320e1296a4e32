"""Model families: one module of pure functions for each architecture, all with the same names and signatures.

A generator family offers `load`, `encode`, `latent_shape`, `sigmas`, `velocity`, `decode`, `blocks`, `block_streams`
and `project`; latents are always (batch, channels, height, width), whatever tokens the transformer wants.
"""
