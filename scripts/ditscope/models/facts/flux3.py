"""FLUX.3 (Black Forest Labs, 2026): a list of blocks per kind of tokens, text before image, then single ones."""

from ditscope.models.facts.facts import Facts

FACTS = Facts(order=("txt_mode_blocks",))
