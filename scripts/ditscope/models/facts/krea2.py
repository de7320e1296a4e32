"""Krea 2 (Krea, 2026): one list of blocks over text and image, joined before the first."""

from ditscope.models.facts.facts import Facts

FACTS = Facts(joint={"transformer_blocks": "first"})
