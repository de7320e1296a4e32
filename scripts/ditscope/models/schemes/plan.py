"""The bits that a plan of the `plan` stage gives each layer; `quantize.coverage` reads them from its file."""

from ditscope.models.schemes.kind import Kind

KIND = Kind(lambda scheme: None)
