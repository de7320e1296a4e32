"""Tables of the stage `blocks`."""

BLOCK = ["model", "depth", "block", "block_type", "block_index"]
