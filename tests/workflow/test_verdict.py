"""`ditscope verdict`: synthetic runs of known difference through the command, the table it prints, and bad input."""

import itertools
import json
import shutil
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch
from PIL import Image

from ditscope.benchmark.features import Extractor
from ditscope.benchmark.run_tables import OF_RUN
from ditscope.cli import main
from ditscope.core.paired import Centre
from ditscope.core.shards import png_bytes, write_tar
from ditscope.core.tables import write_table
from ditscope.shapes.oracle import oracle
from ditscope.shapes.world import ATTRIBUTES, Scene, all_scenes, caption, render
from ditscope.workflow.verdict import metrics
from ditscope.workflow.verdict.judge import BETTER, EQUIVALENT, SHOWN, UNDECIDED, WORSE, judge, overall
from ditscope.workflow.verdict.metrics import Measured, gaussian_kernel, polynomial_kernel, set_difference
from ditscope.workflow.verdict.text import safe

SEEDS = (0, 1)
ABOUT = {
    "dtype": "float32", "steps": 8, "guidance": 0.0, "width": 64, "height": 64, "quantized_layers": 1,
    "skipped_layers": 0, "indivisible_layers": 0, "indivisible": "", "mean_bits": None, "nominal_bytes": 8,
    "simulated": False, "stored_bytes": 8, "images": 1, "quality_batch": 4, "floor_batch": None, "images_reason": "",
    "images_sha256": "0", "reason": "",
}  # fmt: skip


def scenes(count: int) -> list[Scene]:
    return [all_scenes()[i] for i in np.linspace(0, 1919, count).astype(int)]


def write_run(folder, scheme, pictures, about=(), made_with=()):
    """A run as the benchmark leaves it; `pictures` by (prompt_id, prompt, seed)."""
    folder.mkdir(parents=True, exist_ok=True)
    made = {"model": "m", "steps": 8, "guidance": 0.0, "width": 64, "height": 64} | dict(made_with)
    samples = [
        {
            "__key__": f"{i:05d}",
            "png": png_bytes(picture),
            "json": made | {"prompt_id": p, "prompt": text, "seed": seed},
        }
        for i, ((p, text, seed), picture) in enumerate(pictures.items())
    ]
    write_tar(samples, folder / f"{scheme}-eager.tar")
    kind = "base" if scheme == "base" else "int8-weight-only"
    identity = {"model": "m", "hardware": "here", "scheme": scheme, "kind": kind, "compile": "eager"}
    row = pl.DataFrame([identity | ABOUT | dict(about)], schema=OF_RUN.schema())
    write_table(row, folder / f"{scheme}-eager.parquet", OF_RUN)
    return folder / f"{scheme}-eager.parquet"


def noisy(pictures, amount, seed=0):
    rng = np.random.default_rng(seed)
    return {key: np.clip(p + rng.normal(0, amount, p.shape), 0, 255).astype(np.uint8) for key, p in pictures.items()}


def decibels(a, b):
    return 20 * np.log10(255) - 10 * np.log10(((a.astype(float) - b) ** 2).mean())


@pytest.fixture(scope="module")
def pictures():
    """Renders of 10 scenes under two seeds each."""
    rng = np.random.default_rng(0)
    return {
        (f"p{i}", caption(scene), seed): np.asarray(render(scene, rng))
        for (i, scene), seed in itertools.product(enumerate(scenes(10)), SEEDS)
    }


@pytest.fixture
def study(tmp_path, pictures, monkeypatch):
    """Results of a study whose encoder is the mean colour of a picture's quarters: base, good, alike, bad."""

    def colours(images: list[Image.Image]) -> torch.Tensor:
        small = [np.asarray(image.convert("RGB").resize((2, 2), Image.Resampling.BOX), np.float32) for image in images]
        return torch.from_numpy(np.stack(small)).reshape(len(images), 12) + 1

    def letters(texts: list[str]) -> torch.Tensor:
        return torch.stack([torch.rand(12, generator=torch.Generator().manual_seed(len(t))) for t in texts])

    monkeypatch.setattr(metrics, "feature_extractor", lambda name, entry: Extractor("colours", colours, letters))
    monkeypatch.setattr(metrics, "CACHE", tmp_path / "cache")
    monkeypatch.setattr(metrics, "oracle", lambda image: dict.fromkeys(ATTRIBUTES, "red"))  # the true one takes 0.1 s
    folder = tmp_path / "demo" / "benchmarks" / "m" / "here"
    write_run(folder, "base", pictures)
    for scheme, amount, seed in (("good", 4, 1), ("alike", 4, 2), ("bad", 24, 3)):
        write_run(folder, scheme, noisy(pictures, amount, seed))
    (tmp_path / "demo" / "plan.json").write_text(json.dumps({"targets": {}, "config": {}}))
    return tmp_path / "demo"


def verdict(*arguments):
    with pytest.raises(SystemExit) as done:
        main(["verdict", *map(str, arguments)])
    return done.value.code


def test_two_schemes_against_their_base(study, pictures, capsys):
    out = study.parent / "verdict.json"
    assert verdict(f"{study}:m/good", f"{study}:bad", "--json", out) == 1
    text = capsys.readouterr().out
    assert text.startswith("### m/bad against m/good: **worse**")
    assert "20 pictures of 10 prompts" in text and "both against the base `m/base`" in text
    document = json.loads(out.read_text())
    rows = {row["metric"]: row for row in document["metrics"]}
    assert (document["verdict"], document["exit_code"], document["prompts"]) == ("worse", 1, 10)
    assert rows["psnr_db"]["verdict"] == rows["ssim"]["verdict"] == "worse"
    lost = [decibels(p, noisy(pictures, 4, 1)[k]) - decibels(p, noisy(pictures, 24, 3)[k]) for k, p in pictures.items()]
    assert rows["psnr_db"]["difference"] == pytest.approx(-np.mean(lost))
    assert rows["kid"]["verdict"] == "not judged" and "lpips" in document["not_measured"]
    assert rows["ssim"]["worst"][0]["prompt_id"].startswith("p")
    assert f"| {' | '.join(['PSNR, dB'])} |" in text and text.count("\n|") == len(rows) + 2


def test_runs_that_differ_in_nothing_are_equivalent(study, capsys):
    assert verdict(f"{study}:m/good", f"{study}:m/alike", "--metrics", "psnr_db", "ssim", "feature_cosine") == 0
    assert "**equivalent**" in capsys.readouterr().out


def test_against_the_base_the_margin_is_what_may_be_lost(study, capsys):
    out = study.parent / "v.json"
    assert verdict(f"{study}:base", f"{study}:good", "--metrics", "ssim", "--margins", "ssim=0.5", "--json", out) == 0
    assert verdict(f"{study}:base", f"{study}:bad", "--metrics", "ssim", "psnr_db", "--json", out) == 1
    rows = {row["metric"]: row for row in json.loads(out.read_text())["metrics"]}
    assert rows["ssim"]["null"] == -0.01 and rows["psnr_db"]["verdict"] == "not judged"
    assert "A is what fidelity is measured against" in capsys.readouterr().out
    assert verdict(f"{study}:bad", f"{study}:base", "--metrics", "ssim") == 0  # and the other way round


def test_oracle_finds_pictures_of_other_things(study, pictures, capsys, monkeypatch):
    """Every other picture shows another scene: half of the prompts lose, the rest do not."""
    monkeypatch.setattr(metrics, "oracle", oracle)
    wrong = dict(pictures)
    keys = list(pictures)
    for i in range(0, len(keys), 4):
        wrong[keys[i]] = wrong[keys[i + 1]] = pictures[keys[(i + 9) % len(keys)]]
    path = write_run(study / "benchmarks/m/here", "wrong", wrong)
    assert verdict(f"{study}:base", path, "--metrics", "objects") == 1


def test_objects_that_ten_prompts_show_right_may_be_wrong_in_others():
    """Without a change in n prompts, 1 - 0.025^(1/n) of them may still change: 72 prompts for a margin of 5 %."""
    (row,) = judge(measured(10, objects=np.zeros(10)), "", {"objects": 0.05})
    assert (row.verdict, row.more) == (UNDECIDED, 62) and row.high == pytest.approx(1 - 0.025**0.1) == -row.low
    assert judge(measured(72, objects=np.zeros(72)), "", {"objects": 0.05})[0].verdict == EQUIVALENT


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("{0}:m/good", "{0}:m/good"), "A and B are the same run"),
        (("{0}:m/good", "{0}:m/god"), "B: `m/god` is not a run of the benchmark of {0}; did you mean `m/good`?"),
        (("{0}", "{0}:m/good"), "names no run; give EXPERIMENT:MODEL/SCHEME"),
        (("nowhere:m/good", "{0}:m/good"), "compare: `nowhere` is not a results folder"),
        (("{0}:m/good", "{0}/none.parquet"), "B: no file {0}/none.parquet"),
        (("{0}:m/good", "{0}:m/bad", "--margins", "ssim=0"), "--margins: ssim=0: a margin is above 0"),
        (("{0}:m/good", "{0}:m/bad", "--margins", "ssim=nan"), "a margin is above 0"),
        (("{0}:m/good", "{0}:m/bad", "--margins", "ssim"), "`ssim` is not METRIC=NUMBER"),
        (("{0}:m/good", "{0}:m/bad", "--margins", "sim=1"), "`sim` is not a metric; did you mean `ssim`?"),
        (("{0}:m/good", "{0}:m/bad", "--metrics", "psnr"), "`psnr` is not a metric; did you mean `psnr_db`?"),
        (("{0}:m/good", "{0}:m/bad", "--metrics", "kid"), "kid: no margin to judge by; give --margins kid=NUMBER"),
        (("{0}:m/good", "{0}:m/bad", "--metrics", "lpips"), "lpips: LPIPS needs"),
        (("{0}:m/good", "{0}:m/bad", "--encoders", "clip-lage"), "did you mean `clip-large`?"),
    ],
)
def test_bad_input_is_one_line(study, capsys, arguments, said):
    assert main(["verdict", *(argument.format(study) for argument in arguments)]) == 2
    error = capsys.readouterr().err.strip()
    assert said.format(study) in error and len(error.splitlines()) == 1


def test_pictures_that_are_no_pairs_are_refused(study, pictures, capsys):
    few = dict(list(pictures.items())[:-1])
    folder = study / "benchmarks/m/here"
    for name, made, about, with_, said in (
        ("few", few, {}, {}, "19 (prompt, seed) pairs are not the 20 of the reference"),
        ("steps", pictures, {}, {"steps": 4}, "steps 4, but the reference"),
        ("batch", pictures, {"quality_batch": 1}, {}, "in batches of 4, this run's in batches of 1"),
        ("unable", pictures, {"reason": "needs CUDA"}, {}, "it has no pictures: needs CUDA"),
    ):
        path = write_run(folder, name, made, about, with_)
        assert main(["verdict", f"{study}:m/good", str(path)]) == 2
        assert said in capsys.readouterr().err
    one = {key: picture for key, picture in pictures.items() if key[0] == "p0"}
    paths = [write_run(study.parent / "one", scheme, one) for scheme in ("base", "b")]
    assert main(["verdict", *map(str, paths)]) == 2
    assert "pictures of one prompt" in capsys.readouterr().err
    shutil.rmtree(study / "benchmarks/m/here")
    assert main(["verdict", f"{study}:m/good", f"{study}:m/bad"]) == 2


# Sets of pictures, and what is made of metrics ------------------------------------------------------------------------


def test_difference_of_sets_equals_loops_over_pairs_of_prompts():
    rng = np.random.default_rng(5)
    prompts = np.repeat(np.arange(6), 2)
    a, b, base = (rng.normal(size=(12, 4)) for _ in range(3))
    for kernel in (polynomial_kernel, gaussian_kernel):

        def distance(x, left_out=None, kernel=kernel):
            total = count = 0
            for i, j in itertools.permutations([i for i in range(6) if i != left_out], 2):
                blocks = [(x, x, 1), (base, base, 1), (x, base, -1), (base, x, -1)]
                total += sum(s * kernel(p[prompts == i], q[prompts == j]).mean() for p, q, s in blocks)
                count += 1
            return total / count

        to_a, to_b, middle = set_difference(a, b, base, prompts, kernel)
        assert (to_a, to_b) == (pytest.approx(distance(a)), pytest.approx(distance(b)))
        without = np.array([distance(b, i) - distance(a, i) for i in range(6)])
        assert middle.mean == pytest.approx(to_b - to_a)
        assert middle.error == pytest.approx(np.sqrt(5 / 6 * ((without - without.mean()) ** 2).sum()))
    x, y = rng.normal(size=3), rng.normal(size=3)
    assert polynomial_kernel(x[None], y[None])[0, 0] == pytest.approx((x @ y / 3 + 1) ** 3)
    assert gaussian_kernel(x[None], y[None])[0, 0] == pytest.approx(1000 * np.exp(-((x - y) ** 2).sum() / 200))


def measured(n, **values):
    texts = [f"p{i}" for i in range(n)]
    return Measured(
        texts, dict(zip(texts, texts, strict=True)), {k: (np.zeros(n), v) for k, v in values.items()}, {}, {}
    )


def test_several_metrics_are_corrected_by_holm_and_the_worst_counts():
    rng = np.random.default_rng(6)
    flat, bad = rng.normal(0, 0.001, 40), rng.normal(-0.1, 0.05, 40)
    rows = judge(
        measured(40, ssim=bad, lpips=bad, feature_cosine=flat),
        "",
        dict.fromkeys(("ssim", "lpips", "feature_cosine"), 0.01),
    )
    assert [row.verdict for row in rows] == [WORSE, BETTER, EQUIVALENT] and overall(rows) == WORSE
    assert [overall([replace(rows[0], verdict=v) for v in vs]) for vs in (
        (BETTER, EQUIVALENT), (BETTER, UNDECIDED), (SHOWN, EQUIVALENT))] == [BETTER, UNDECIDED, EQUIVALENT]  # fmt: skip
    p = 0.03
    edge = Measured(["a"] * 8, {}, {}, {n: (0, 0, centre_of(p)) for n in ("kid", "cmmd")}, {})
    (alone,) = judge(edge, "", {"kid": 1e-6})
    both = judge(edge, "", {"kid": 1e-6, "cmmd": 1e-6})
    assert (alone.verdict, alone.p) == (WORSE, pytest.approx(p))
    assert [(r.verdict, r.p) for r in both] == [(UNDECIDED, pytest.approx(2 * p))] * 2


def centre_of(p):
    """A centre at 1 over 20 units whose p-value against 0 is `p`."""
    from scipy.special import stdtrit

    return Centre(1.0, float(1 / stdtrit(19, 1 - p / 2)), 20)


def test_few_prompts_get_no_verdict():
    (row,) = judge(measured(7, ssim=np.full(7, -0.5) + np.arange(7) / 100), "", {"ssim": 0.01})
    assert (row.verdict, row.p, row.low) == (UNDECIDED, None, None) and row.more == 1


def test_texts_of_prompts_are_no_markup():
    assert safe("a | `b` <i>c\x1b[31m") == "a \\| \\`b\\` &lt;i&gt;c\\\\x1b\\[31m"
