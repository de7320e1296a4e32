"""Ideogram 4 (Ideogram, 2026): one list of blocks over a sequence where marks tell text from image."""

from ditscope.models.facts.facts import Facts

FACTS = Facts(joint={"layers": ""})
