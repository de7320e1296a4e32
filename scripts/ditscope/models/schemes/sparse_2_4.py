"""Two of every four weights, in half precision (2:4 semi-structured sparsity)."""

from torchao.sparsity.sparse_api import SemiSparseWeightConfig

from ditscope.models.schemes.kind import Kind

KIND = Kind(
    lambda scheme: SemiSparseWeightConfig(),
    capability=(8, 0),
    dtypes=("bfloat16", "float16"),
    multiple=64,
    sparse=True,
)
