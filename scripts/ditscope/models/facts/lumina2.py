"""Lumina-Image 2.0 (Alpha-VLLM, 2025): a list per stream, text before image, then blocks over both, joined."""

from ditscope.models.facts.facts import Facts

FACTS = Facts(order=("context_refiner", "noise_refiner"), joint={"layers": "first"}, ragged=True)
