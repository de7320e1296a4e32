"""Model families: one module for each, of what cannot be found in a pipeline of diffusers, all under the same names.

`models.registry.FAMILIES` names the class of diffusers that loads and samples it, or none: its module then has a
`Pipeline` (the dummy). `T5` is the tokenizer whose text length can be chosen (empty: none), `blocks` gives the blocks
by name, `decode` is the work of its VAE alone. A pipeline that holds its latents as tokens has `pack` and `unpack`; one
whose VAE is loaded in another type than the rest has `VAE_DTYPE`; one of videos has `film`. A family whose blocks can
be captured and scored one by one has `block_streams` and `project` too.
Latents are (batch, channels, height, width), with the frames of a video before the height.
"""
