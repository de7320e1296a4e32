"""Z-Image (Tongyi, 2025): a list per stream, then blocks over both, joined; time runs from 0 (noise) to 1."""

from ditscope.models.facts.facts import Facts

FACTS = Facts(joint={"layers": "last"}, negated=True, time="1 - sigma")
