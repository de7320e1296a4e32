"""What the workflow knows of a prompt CSV before it runs: shards that last, read without holding the whole list."""

import csv
from dataclasses import replace

import polars as pl
import pytest

from ditscope.core.errors import InputError
from ditscope.prompts.files import check_shards, first_runs, read_prompts, shard_index
from ditscope.prompts.settings import Prompts
from ditscope.prompts.stage import write_shard
from ditscope.trajectories.networks import trajectory_index
from ditscope.trajectories.settings import Trajectories


@pytest.fixture
def settings(tmp_path):
    """Eleven prompts in shards of four, two seeds each; the third spans two lines, a blank row follows the fifth."""
    path = tmp_path / "prompts.csv"
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["prompt"])
        for i in range(11):
            writer.writerow([f"a ring,\nnumber {i}" if i == 2 else f"a ring, number {i}"])
            if i == 4:
                file.write("\r\n")
    return Prompts(csv=str(path), shard_size=4, seeds=[0, -1])


def test_index_counts_runs_and_prompts(settings):
    index = shard_index(settings, "study")
    assert [shard["runs"] for shard in index] == [8, 8, 6]
    assert [shard["end"] for shard in index] == [4, 8, 11]


def test_job_writes_the_shard_that_the_index_describes(settings, tmp_path):
    prompts = read_prompts(settings.csv)
    for number, shard in enumerate(shard_index(settings, "study")):
        out = tmp_path / f"{number}.parquet"
        write_shard(settings.csv, number, out, replace(settings, limit=shard["end"]), "study")
        rows = pl.read_parquet(out)
        assert rows.height == shard["runs"]
        expected = [p.prompt_id for p in prompts[4 * number : 4 * number + 4] for _ in range(2)]
        assert rows["prompt_id"].to_list() == expected


def test_higher_limit_changes_only_the_unfilled_shard(settings):
    few, more = (shard_index(replace(settings, limit=limit), "study") for limit in (6, 9))
    assert few[0] == more[0]
    assert few[1] != more[1] and more[1] == shard_index(settings, "study")[1]


@pytest.mark.parametrize("limit", [0, 3, 9])
def test_first_runs_are_those_of_the_whole_list(settings, limit):
    """Reading only the prompts that are needed gives what reading all of them gives."""
    settings = replace(settings, limit=limit)
    every = first_runs(settings, "study", 0)
    runs = min(limit or 11, 11) * 2
    assert first_runs(settings, "study", runs) == every
    assert first_runs(settings, "study", 5)["count"] == 5


def test_trajectories_of_the_first_prompts_do_not_read_the_others(settings):
    """A broken row behind them is the shard index's to refuse."""
    before = trajectory_index(settings, Trajectories(prompts=3, shard_size=4), "study")
    with open(settings.csv, "a") as file:
        file.write(",,,\n")
    assert trajectory_index(settings, Trajectories(prompts=3, shard_size=4), "study") == before
    with pytest.raises(InputError, match=r"row \d+ .*has 4 fields"):
        shard_index(settings, "study")


def test_too_many_shards_are_refused_with_a_size_that_is_not(settings):
    with pytest.raises(InputError, match=r"11 in shards of 1 are 11 shards, more than 10; set it to 2,") as refusal:
        shard_index(replace(settings, shard_size=1, max_shards=10), "study")
    assert "\n" not in str(refusal.value)
    for count in (10_001, 1_000_000, 123_456_789):
        with pytest.raises(InputError) as refusal:
            check_shards("prompts", count, 1, 10_000)
        advised = int(str(refusal.value).split("set it to ")[1].split(",")[0])
        check_shards("prompts", count, advised, 1_000)
        with pytest.raises(InputError):
            check_shards("prompts", count, advised // 2, 1_000)


def test_five_digits_number_every_shard(settings):
    with pytest.raises(InputError, match="more than 99,999"):
        check_shards("prompts", 100_000, 1, 1_000_000)


def test_empty_shards_are_refused(settings):
    with pytest.raises(InputError, match="shard_size: 0"):
        shard_index(replace(settings, shard_size=0), "study")
