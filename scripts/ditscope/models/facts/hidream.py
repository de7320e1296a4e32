"""HiDream-I1 (HiDream.ai, 2025): double blocks, then single ones over image and text, joined."""

from ditscope.models.facts.facts import Facts

FACTS = Facts(joint={"single_stream_blocks": "last"})
