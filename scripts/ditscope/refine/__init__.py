"""One-step refinement of interpolated latents by drifting (arXiv:2602.04770), on grids of any dimension.

`corruption` keeps a few patches and interpolates the rest; `codebook` quantizes prompt and kept patches to
pseudo-classes; `networks` holds the latent masked autoencoder, whose frozen maps `features` turns into vectors, and the
refiner; `drifting` is the loss; `loop` the resumable training, by several `processes` under torchrun; `train` and
`diagnose` are the stages.
"""
