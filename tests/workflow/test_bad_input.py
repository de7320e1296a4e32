"""Bad files: each is refused with one line that names the file, the row or key, and the fix."""

import csv
import json
import random
import struct

import pytest

import workflow
from ditscope.calibrate.files import calibration_images
from ditscope.cli import main
from ditscope.core.errors import InputError
from ditscope.models.folders import check_model_folder, resolve_source
from ditscope.models.settings import Model
from ditscope.prompts.files import Prompt, csv_rows, csv_text, read_prompts, read_runs, runs_of, shard_index
from ditscope.prompts.settings import Prompts
from ditscope.prompts.stage import write_shard


def refusal(function, *arguments):
    """The message of the InputError that `function` raises, which is one line."""
    with pytest.raises(InputError) as refused:
        function(*arguments)
    assert "\n" not in str(refused.value)
    return str(refused.value)


# Prompt files ---------------------------------------------------------------------------------------------------------

BAD_CSVS = {
    "empty": (b"", "empty; the first row must name the columns"),
    "header only": (b"prompt\n", "no prompt below the header"),
    "no prompt column": (b"text\na cat\n", "row 1 has no `prompt` column (columns: text)"),
    "unknown column": (b"prompt,sead\na cat,1\n", "row 1: unknown column `sead`"),
    "not UTF-8": ("prompt\na cat\na caf\xe9\n".encode("latin-1"), "line 3 is not UTF-8; save the file as UTF-8"),
    "duplicate id": (b"prompt_id,prompt\na,x\nb,y\na,z\n", "row 4: prompt_id `a` is already in row 2"),
    "id like a default one": (
        b"prompt_id,prompt\np00001,x\n,y\n",
        "row 3: prompt_id `p00001` is already in row 2",
    ),
    "too many fields": (
        b"prompt,seed\na cat,1\na cat, a dog,2\n",
        "row 3 has 3 fields, the header has 2; quote",
    ),
    "too few fields": (b"prompt,seed\na cat\n", "row 2 has 1 fields, the header has 2"),
    "empty prompt": (b"prompt,seed\na cat,1\n  ,2\n", "row 3: the prompt is empty"),
    "control character": (b"prompt\na cat\na \x07 dog\n", "line 3 has the control character '\\x07'; remove it"),
    "quote that is never closed": (b'prompt\na cat\n"a dog\na bird\n', "line 3: a quote is opened and never closed"),
    "lone quote at the end": (b'prompt,seed\na,"', "line 2: a quote is opened and never closed"),
    "quote that swallows rows": (b'prompt,seed\n"a,1\nb,2\n"c",3\n', "line 4: text behind a closing quote"),
    "quote inside a field": (b'prompt\na 5" ring, 6" wide\n', "line 2: a quote inside a field without quotes"),
    "doubled column": (b"prompt,seed,prompt\na,1,b\n", "row 1 names the column `prompt` twice"),
    "semicolons": (b"prompt;seed\na;1\n", "row 1 is separated by semicolons; save the file with commas"),
    "tabs": (b"prompt\tseed\na\t1\n", "row 1 is separated by tabs; save the file with commas"),
    "blank lines only": (b"\n\r\n\n", "empty; the first row must name the columns"),
    "NUL": (b"prompt\na\0b\n", "line 2 has the control character '\\x00'"),
    "row after a quoted line break": (b'prompt,seed\n"a\nb",1\nc,x\n', "row 3 (line 4): seed `x` is not an integer"),
    "not UTF-8 after Mac line ends": (b"prompt\ra\rb\xe9\r", "line 3 is not UTF-8"),
    "Parquet": (b"PAR1....PAR1", "a Parquet table, where a prompt CSV is meant"),
    "spreadsheet": (b"PK\x03\x04....", "a spreadsheet or archive (ZIP), where a prompt CSV is meant"),
    "UTF-16": ("prompt\na".encode("utf-16"), "text in UTF-16, where a prompt CSV is meant"),
    "seed beyond 2^63 - 1": (
        b"prompt,seed\na,9223372036854775807\nb,9223372036854775808\n",
        "row 3: seed: the number is not within 0 to 2^63 - 1",
    ),
    "seed of 5,000 digits": (b"prompt,seed\na," + b"9" * 5000 + b"\n", "row 2: seed: the number is not within 0"),
    "seed below -1": (b"prompt,seed\na,-2\n", "row 2: seed: -2 is not within 0 to 2^63 - 1 (or -1"),
    "seed with an underscore": (b"prompt,seed\na,1_0\n", "row 2: seed `1_0` is not an integer"),
    "seed not a number": (b"prompt,seed\na cat,one\n", "row 2: seed `one` is not an integer"),
}


@pytest.mark.parametrize("case", BAD_CSVS)
def test_bad_csv_is_refused_by_file_and_row(tmp_path, case):
    content, message = BAD_CSVS[case]
    path = tmp_path / "prompts.csv"
    path.write_bytes(content)
    text = refusal(read_prompts, path)
    assert text.startswith(f"{path}: ")
    assert message in text


@pytest.mark.parametrize(
    "content, prompts",
    [
        ("\n\r\nprompt\na cat\n", ["a cat"]),
        ("prompt\ra cat\ra dog\r", ["a cat", "a dog"]),
        ('prompt\n"a ""red"" cat, asleep\nat home"\n', ['a "red" cat, asleep\nat home']),
        (f'prompt\n"{"a" * 140_000}"', ["a" * 140_000]),
    ],
    ids=["blank first lines", "Mac line ends", "quotes, commas and line breaks", "a long field"],
)
def test_unusual_csv_is_read_whole(tmp_path, content, prompts):
    path = tmp_path / "p.csv"
    path.write_bytes(content.encode())
    assert [p.prompt for p in read_prompts(path)] == prompts


def test_csv_parser_agrees_with_the_standard_library_on_what_it_wrote(tmp_path):
    rng = random.Random(1)
    alphabet = ["a", '"', ",", "\n", "\r\n", " ", "é", ";", "'"]
    rows = [["".join(rng.choices(alphabet, k=rng.randrange(6))) + "x" for _ in range(2)] for _ in range(500)]
    path = tmp_path / "p.csv"
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["prompt", "family"])
        writer.writerows(rows)
    assert [row for _, _, row in csv_rows(path, csv_text(path))][1:] == rows


@pytest.mark.parametrize("name", ["p.txt", "p.CSV", "p"])
def test_prompt_files_are_told_by_their_content(tmp_path, name):
    path = tmp_path / name
    path.write_text("prompt,seed\na cat,3\n")
    assert [(r["prompt"], r["seed"]) for r in read_runs(path)] == [("a cat", 3)]


@pytest.mark.parametrize("name, content", [("x.txt", b"a cat\na dog\n"), ("x.tsv", b"prompt\tseed\n"), ("x.csv", b"")])
def test_a_users_own_prompt_file_is_never_to_be_deleted(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    text = refusal(read_runs, tmp_path / name)
    assert "delete" not in text and "Parquet" not in text


def test_folder_in_the_place_of_prompts_is_refused(tmp_path):
    assert "a folder, where a prompt CSV is meant" in refusal(read_prompts, tmp_path)
    assert "a folder, where a prompt CSV or a table" in refusal(read_runs, tmp_path)


def test_two_lists_with_the_same_run_are_refused(tmp_path):
    for name in ("a.csv", "b.csv"):
        (tmp_path / name).write_text(f"prompt\n{name}\n")
    text = refusal(read_runs, tmp_path / "a.csv", tmp_path / "b.csv")
    assert text.startswith(
        f"{tmp_path / 'b.csv'}: the run of prompt_id `p00000`, seed 0 is in {tmp_path / 'a.csv'}, too"
    )


def test_shard_beyond_the_prompts_is_refused(tmp_path):
    path = tmp_path / "p.csv"
    path.write_text("prompt\na\n")
    for shard in (1, -1):
        assert f"has no prompts for shard {shard}" in refusal(write_shard, path, shard, tmp_path / "s", Prompts(), "x")


def test_missing_csv_is_refused(tmp_path):
    assert refusal(read_prompts, tmp_path / "none.csv").endswith("set `prompts.csv` to an existing file")


def test_byte_order_mark_and_windows_lines_are_accepted(tmp_path):
    path = tmp_path / "excel.csv"
    path.write_bytes(b'\xef\xbb\xbfprompt,seed\r\n"a cat, asleep",7\r\n\r\na dog,\r\n')
    prompts = read_prompts(path)
    assert [(p.prompt_id, p.prompt, p.seed) for p in prompts] == [
        ("p00000", "a cat, asleep", 7),
        ("p00001", "a dog", None),
    ]


def test_own_seed_wins_and_minus_one_is_derived(tmp_path):
    path = tmp_path / "seeds.csv"
    path.write_text("prompt,seed\na,7\nb,\nc,-1\n")
    runs = runs_of(read_prompts(path), [0, 1], "study")
    assert [(r["prompt"], r["seed"]) for r in runs[:3]] == [("a", 7), ("b", 0), ("b", 1)]
    assert runs[3]["derived_seed"]
    assert len({run["seed"] for run in runs_of(read_prompts(path)[1:2], [-1, -1], "study")}) == 2
    assert runs[3]["seed"] not in (-1, runs_of(read_prompts(path), [0, 1], "other")[3]["seed"])


def test_appending_keeps_the_digests_of_full_shards(tmp_path):
    path = tmp_path / "prompts.csv"
    rows = [f"scene {i}" for i in range(5)]
    path.write_text("\n".join(["prompt", *rows]) + "\n")
    settings = Prompts(csv=str(path), shard_size=2)
    before = shard_index(settings, "study")
    path.write_text("\n".join(["prompt", *rows, "scene 5", "scene 6"]) + "\n")
    after = shard_index(settings, "study")
    assert [s["runs"] for s in before] == [2, 2, 1] and [s["runs"] for s in after] == [2, 2, 2, 1]
    assert before[:2] == after[:2]
    assert before[2] != after[2]


# Model folders --------------------------------------------------------------------------------------------------------


def write_safetensors(path, size=64):
    """A safetensors file by its specification: header length, JSON header, bytes."""
    header = json.dumps({"w": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(size))


def test_whole_folder_is_accepted(tmp_path):
    write_safetensors(tmp_path / "model" / "vae" / "w.safetensors")
    check_model_folder(tmp_path / "model")


@pytest.mark.parametrize("keep", [0, 4, 20, -1], ids=["empty", "in the length", "in the header", "in the data"])
def test_truncated_safetensors_is_refused_by_name(tmp_path, keep):
    file = tmp_path / "model" / "vae" / "w.safetensors"
    write_safetensors(file)
    file.write_bytes(file.read_bytes()[:keep])
    text = refusal(check_model_folder, tmp_path / "model")
    assert text.startswith(f"{file}: ") and "again" in text


def test_longer_safetensors_than_its_header_says_is_refused(tmp_path):
    file = tmp_path / "model" / "w.safetensors"
    write_safetensors(file)
    file.write_bytes(file.read_bytes() + b"x")
    assert str(file) in refusal(check_model_folder, tmp_path / "model")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "w.pt", "w.pth", "w.ckpt", "w.pkl"])
def test_pickled_weights_are_refused_by_name(tmp_path, name):
    write_safetensors(tmp_path / "model" / "w.safetensors")
    (tmp_path / "model" / name).write_bytes(b"\x80\x04.")
    text = refusal(check_model_folder, tmp_path / "model")
    fix = "move it elsewhere, safetensors lie beside it"
    assert text == f"{tmp_path / 'model' / name}: pickled weights are refused; {fix}"
    (tmp_path / "model" / "w.safetensors").rename(tmp_path / "w.safetensors")
    assert refusal(check_model_folder, tmp_path / "model").endswith("are refused; convert the model to safetensors")


def test_folder_without_weights_is_refused(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    assert "no .safetensors weights" in refusal(check_model_folder, tmp_path)


def test_missing_folder_is_refused_by_key():
    text = refusal(resolve_source, "mine", Model(family="flux", source="models/none"))
    assert "models.mine" in text and "models/none" in text


def test_unwritable_output_is_refused_before_any_model_loads(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("ditscope.models.loading.load_generator", lambda *_: pytest.fail("a model was loaded"))
    (tmp_path / "file").write_text("")
    images = tmp_path / "file" / "shard.tar"
    prompts = str(workflow.ROOT / "prompts/tiny.csv")
    assert main(["generate", "--model", "shapes-flux", "--prompts", prompts, "--images", str(images)]) == 2
    assert f"--images: {images}: {tmp_path / 'file'} is a file, so nothing can be below it" in capsys.readouterr().err


def test_seeds_of_calls_are_within_64_bits(tmp_path, capsys):
    prompt = [Prompt("p", "a cat")]
    assert calibration_images(prompt, 2, 2**63 - 2)[-1]["seed"] == 2**63 - 1
    assert "not within 0 to 2^63 - 1" in refusal(calibration_images, prompt, 3, 2**63 - 2)
    for seed in (str(2**63), str(2**64), "-2"):
        call = ["capture", "--model", "shapes-flux", "--prompt", "a cat", "--output-dir", str(tmp_path / "out")]
        assert main([*call, f"--seed={seed}"]) == 2
        assert "--seed: " in (said := capsys.readouterr().err) and "not within 0 to 2^63 - 1" in said
    assert not (tmp_path / "out").exists()


def test_names_that_mean_something_in_patterns_pass_a_dry_run(tmp_path):
    models = {"flux+lora.v1": {"family": "flux", "source": "models/shapes-flux", "width": 64, "height": 64}}
    config = {"prompts": {"csv": "a+b (1).csv"}, "models": models, "capture": {"sets": {"a+b": {}}}}
    config |= {"generate": {"models": list(models)}}
    config["capture"]["models"] = list(models)
    (workflow.workdir(tmp_path) / "a+b (1).csv").write_text("prompt\na cat\n")
    (tmp_path / "o.yaml").write_text(json.dumps(config))
    done = workflow.snakemake(tmp_path, "generate", "capture", "--dry-run", "--configfile", "o.yaml")
    assert done.returncode == 0, done.stdout[-2000:]
    assert "captures/flux+lora.v1/a+b" in done.stdout


def test_unwritable_results_stop_the_workflow_before_a_job(tmp_path):
    (workflow.workdir(tmp_path) / "results").symlink_to("/proc")  # nothing can be made there, by root either
    overlay = str(workflow.ROOT / "experiments/tiny.yaml")
    done = workflow.snakemake(tmp_path, "prompts", "--cores", "1", "--configfile", overlay)
    assert done.returncode != 0
    assert "results/tiny/plan.json: cannot be written" in done.stdout and "rule prompt_shard" not in done.stdout
