"""The MLX back end: the transformer of a diffusers pipeline as DiffusionKit's MMDiT, for Apple silicon or a Linux CPU.

`names` says where each weight of diffusers goes, `network` builds and runs the MMDiT, `transformer` puts it into a
pipeline, `gradients` lets torch's autograd go back through it, `observe` tells torch's hooks what its layers are given,
`quantize` gives them fewer bits, `sensitivity` scores them one by one. Text encoders and VAE stay in torch.
"""
