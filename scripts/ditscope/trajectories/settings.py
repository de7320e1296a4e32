"""Settings of the stage `trajectories`."""

from dataclasses import dataclass

from ditscope.core.settings import setting
from ditscope.models.settings import COMPILE_STATES


@dataclass(frozen=True)
class Trajectories:
    """Feed text to a generator, its image to a captioner, the caption back, and so on."""

    networks: list[str] = setting([], "Networks, by name in `networks`", config_only=True)
    prompts: int = setting(
        4, "How many prompts (the first of the list) start a trajectory, one for each seed; 0: all", config_only=True
    )
    from_end: bool = setting(False, "Take the last of the list, not the first", config_only=True)
    max_length: int = setting(8, "Invocations of a trajectory, text and image together", positive=True, most=2**31 - 1)
    shard_size: int = setting(
        16, "Runs (prompt x seed) of one job, which advance together", positive=True, config_only=True
    )
    batch_size: int = setting(
        16, "Invocations computed together; an interrupted job resumes at a whole round", positive=True
    )
    compile: str = setting(
        "eager",
        "torch.compile state of all generators, quantized or not, as in `benchmark.compile`; a compiled one is given "
        "whole batches",
        choices=COMPILE_STATES,
    )
