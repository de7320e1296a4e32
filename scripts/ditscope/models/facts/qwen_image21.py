"""Qwen-Image 2.1 (Qwen, 2026): one list of blocks over a sequence where marks tell text from image."""

from ditscope.models.facts.facts import Facts

FACTS = Facts(joint={"transformer_blocks": ""})
