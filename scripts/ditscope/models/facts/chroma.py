"""Chroma (Lodestone Rock, 2025): FLUX.1 without modulation layers; its single blocks work on both streams, joined."""

from ditscope.models.facts.facts import Facts

FACTS = Facts(joint={"single_transformer_blocks": "first"})
