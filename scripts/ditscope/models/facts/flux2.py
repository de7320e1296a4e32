"""FLUX.2 (Black Forest Labs, 2025): double blocks over two streams, then single ones over both, joined."""

from ditscope.models.facts.facts import Facts

FACTS = Facts(joint={"single_transformer_blocks": "first"})
