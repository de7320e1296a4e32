"""Two of every four weights in int8: torchao has no kernel for it."""

from ditscope.models.schemes.kind import Kind

KIND = Kind(
    lambda scheme: None,
    never="torchao has no int8 kernel for 2:4 sparse weights: only its fp8 config has a sparse layout",
)
