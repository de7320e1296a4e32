"""Settings of the stage `prompts`."""

from dataclasses import dataclass

from ditscope.core.settings import setting


@dataclass(frozen=True)
class Prompts:
    """Split a prompt CSV into shards of runs (prompt x seed)."""

    csv: str = setting(
        "prompts/demo.csv", "CSV with `prompt` and optional `prompt_id, seed, family, negative_prompt`", path=True
    )
    shard_size: int = setting(
        64, "Prompts in a shard; appending prompts touches only the last shard", positive=True, config_only=True
    )
    max_shards: int = setting(
        10_000, "Refuse a study of more shards, which would take minutes to plan", config_only=True
    )
    seeds: list[int] = setting(
        [0],
        "Seeds of each prompt, 0 to 2^63 - 1; a `seed` in the CSV wins; each -1 derives another one, which is recorded",
        signed=True,
        filled=True,
        again=(-1,),
    )
    num_seeds: int = setting(0, "Where above 0: seeds 0 to N - 1 in place of `seeds`", most=1_000_000)
    limit: int = setting(0, "Use only the first N prompts; 0: all")

    def all_seeds(self) -> list[int]:
        """The seeds of a prompt that names none itself."""
        return list(range(self.num_seeds)) if self.num_seeds else self.seeds
