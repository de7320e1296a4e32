"""Safety: nothing unpickles, runs foreign code or shows a token; prompts stay text wherever they are shown."""

import ast
import errno
import json
import logging
import os
import re
import types
from pathlib import Path
from xml.etree import ElementTree

import pytest
from PIL import Image

from ditscope.core.checksums import FOLDER
from ditscope.publish.paper_tables import latex, markdown
from ditscope.style import grid, save
from ditscope.video.frames import wrap
from ditscope.workflow.job import SECRETS, job, redact
from workflow import ROOT

pl = pytest.importorskip("polars")

SOURCES = [*sorted((ROOT / "scripts").rglob("*.py")), *sorted((ROOT / "models").glob("*.py"))]
TOKEN = "hf_" + "Ab3" * 11
HOSTILE = '</script><svg onload=alert(1)>\n& "x" $\\frac{ \\input{/etc/passwd} %s {0} | _ ^'
BANNED_MODULES = {"pickle", "cPickle", "dill", "joblib", "shelve", "marshal", "cloudpickle"}
# Calls that run or unpickle what a file says, and the keyword that makes each safe.
BANNED_CALLS = {"eval", "exec", "compile", "os.system", "yaml.load", "yaml.full_load", "yaml.unsafe_load"}
BANNED_CALLS |= {"tar.extractall", "tarfile.extractall", "shutil.unpack_archive"}


def defects(source: str) -> list[str]:
    """What in Python source could unpickle or run foreign code."""
    lines = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            if ast.unparse(node) == "from pickle import UnpicklingError":  # what torch.load raises
                continue
            lines += [name for name in names if name.split(".")[0] in BANNED_MODULES]
        if not isinstance(node, ast.Call):
            continue
        name, given = ast.unparse(node.func), {k.arg: k.value for k in node.keywords}
        constant = {key: value.value for key, value in given.items() if isinstance(value, ast.Constant)}
        if name in BANNED_CALLS:
            lines.append(name)
        if name == "torch.load" and constant.get("weights_only") is not True:
            lines.append("torch.load without weights_only=True")
        if name in ("np.load", "numpy.load", "np.save", "np.savez") and constant.get("allow_pickle") is not False:
            lines.append(f"{name} without allow_pickle=False")
        if constant.get("trust_remote_code") is True or constant.get("shell") is True:
            lines.append(f"{name} with trust_remote_code or shell")
        if constant.get("use_safetensors") is False:
            lines.append(f"{name} with use_safetensors=False")
    return lines


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads",
        "from pickle import UnpicklingError, loads",
        "from joblib import load",
        "torch.load(p)",
        "torch.load(p, weights_only=False)",
        "yaml.load(t)",
        "np.load(p)",
        "np.load(p, allow_pickle=True)",
        "AutoModel.from_pretrained(p, trust_remote_code=True)",
        "subprocess.run(c, shell=True)",
        "eval(t)",
    ],
)
def test_the_scan_sees_what_is_unsafe(source):
    assert defects(source)


def test_no_source_unpickles_or_runs_foreign_code():
    assert len(SOURCES) > 80
    unsafe = {path.relative_to(ROOT).as_posix(): d for path in SOURCES if (d := defects(path.read_text()))}
    assert unsafe == {}


def test_remote_code_is_only_what_the_config_allows():
    """Wherever `trust_remote_code` is passed on, it is the registry entry's setting, off by default."""
    given = [m for path in SOURCES for m in re.findall(r"trust_remote_code\W+([\w.]+)", path.read_text())]
    assert given and set(given) == {"entry.allow_remote_code"}


@pytest.mark.parametrize("path", [*(ROOT / "rules").glob("*.smk"), ROOT / "Snakefile"], ids=lambda p: p.name)
def test_rules_run_scripts_and_no_shell(path):
    assert not re.search(r"^\s+(shell|run):", path.read_text(), re.M)


# Tokens ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [f"got {TOKEN}.", f"Authorization: Bearer {TOKEN}", "Bearer abcdefgh12345", "https://user:secret@hub.example/x"],
)
def test_tokens_are_starred_out(text):
    shown = redact(text)
    assert "***" in shown and TOKEN not in shown and "secret" not in shown and "abcdefgh" not in shown


def test_ordinary_text_is_left_alone():
    for text in ("hf_hub_download failed", "a bearer of news", "https://huggingface.co/a/b", "at 12:30 @ noon"):
        assert redact(text) == text


@pytest.fixture
def rule(tmp_path, monkeypatch):
    """The object that Snakemake puts into a rule's script."""
    monkeypatch.chdir(tmp_path)
    output = Path("results/study/out/a.json")
    output.parent.mkdir(parents=True)
    return types.SimpleNamespace(
        rule="some_rule",
        log=["rule.log"],
        output=[str(output)],
        params={"code": "0"},
        resources={},
        config={"experiment": "study"},
    )


@pytest.mark.parametrize("variable", SECRETS)
def test_no_token_reaches_a_log_or_a_record(rule, monkeypatch, capfd, variable):
    secret = "not-of-any-known-form"
    monkeypatch.setenv(variable, secret)
    with pytest.raises(SystemExit) as ended, job(rule):
        logging.getLogger("ditscope.models.registry").info("with %s and %s", secret, TOKEN)
        Path(rule.output[0]).write_text("{}")
        raise RuntimeError(f"401 for {secret}")
    text = Path("rule.log").read_text() + "".join(capfd.readouterr()) + str(ended.value)
    assert "401 for ***" in text and secret not in text and TOKEN not in text


def test_a_finished_job_leaves_its_record_and_nothing_of_the_environment(rule, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with job(rule):
        Path(rule.output[0]).write_text("{}")
    (record,) = Path("results/study").joinpath(FOLDER, "some_rule").iterdir()
    assert json.loads(record.read_text())["files"]["out/a.json"]["bytes"] == 2
    assert TOKEN not in record.read_text() + Path("rule.log").read_text()


def test_a_full_disk_ends_a_job_with_one_line(rule):
    with (
        pytest.raises(SystemExit, match=r"^Error: rule some_rule: No space left on device; make room") as ended,
        job(rule),
    ):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert "\n" not in str(ended.value) and "Traceback" in Path("rule.log").read_text()


def test_nothing_of_a_finished_study_holds_a_token_or_a_path_of_the_machine(study):
    for path in sorted((study / "results/tiny").rglob("*")):
        if path.is_file() and path.suffix in (".json", ".md", ".csv", ".tex", ".svg", ".log", ".tsv"):
            text = path.read_text(errors="replace")
            assert redact(text) == text, path
            if not path.is_relative_to(study / "results/tiny/logs"):
                assert str(study) not in text and f"{os.sep}home{os.sep}" not in text, path


# Prompts --------------------------------------------------------------------------------------------------------------


def test_prompts_in_an_svg_are_drawn_and_not_marked_up(tmp_path):
    figure, axes = grid(1, 1)
    axes[0, 0].text(0, 0, HOSTILE, parse_math=False)
    save(figure, pl.DataFrame({"prompt": [HOSTILE]}), tmp_path / "f", ["svg"], 50)
    text = (tmp_path / "f.svg").read_text()
    elements = list(ElementTree.fromstring(text).iter())  # comments, in which matplotlib repeats texts, left out
    assert not {element.tag.rpartition("}")[2] for element in elements} & {"script", "foreignObject", "a", "image"}
    assert not [name for element in elements for name in element.attrib if name.startswith("on")]
    assert pl.read_csv(tmp_path / "f.csv")["prompt"].to_list() == [HOSTILE]


def test_prompts_in_latex_hold_no_command():
    row = latex(pl.DataFrame({"prompt": [HOSTILE]})).splitlines()
    assert len(row) == 7, "one table row, whatever line breaks the prompt has"
    text = re.sub(
        r"\\(textbackslash|textasciicircum|textasciitilde)\{\}|\\text(less|greater)\{\}|\\[&%$#_{}]", "", row[4]
    )
    assert text.endswith(r" \\") and not re.search(r"[\\{}$&#%_^~]", text.removesuffix(r" \\"))


def test_prompts_in_markdown_stay_in_their_cell():
    lines = markdown(pl.DataFrame({"prompt": [HOSTILE], "n": [1]})).splitlines()
    assert len(lines) == 3 and "<" not in lines[2] and len(re.findall(r"(?<!\\)\|", lines[2])) == 3


def test_prompts_in_overlays_are_cut_to_their_lines():
    for text in (HOSTILE, "a" * 2_000, "", "\n\n\n"):
        lines = wrap(text, 12, 200, 3)
        assert len(lines) <= 3 and not any("\n" in part for part in lines)


def test_a_png_of_a_shard_cannot_blow_up_memory():
    assert Image.MAX_IMAGE_PIXELS is not None
