"""The command lines of the programs that ditscope follows, as their READMEs print them, and which value wins."""

import inspect
import json
import shlex
import shutil
from functools import wraps
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ditscope import cli
from ditscope.benchmark.settings import Benchmark
from ditscope.calibrate.files import validate_calibration
from ditscope.calibrate.settings import Calibrate
from ditscope.capture.files import captures_in, read_metadata
from ditscope.capture.settings import CaptureSet
from ditscope.config_files import read_config
from ditscope.core.tables import read_table
from ditscope.models.folders import source_folder
from ditscope.video.settings import Video
from tiny_pipelines import save_tiny_flux, save_tiny_sd3
from workflow import ROOT

PROGRAMS = {
    "uv run python capture_sample.py": "capture",
    "uv run python create_visualization.py": "video",
    "python -m src.generate_calibration_data": "calibrate",
    "conda run -n diffusionkit python -m src.benchmark_model": "benchmark",
}
CANONICAL = """conda run -n diffusionkit python -m src.benchmark_model \\
    --config fp16 \\
    --num-images 150 \\
    --num-steps 100 \\
    --cfg-scale 7.5 \\
    --output-dir benchmark_results/fp16_matched \\
    --reference-dir calibration_data_100/images"""
QUICK = """conda run -n diffusionkit python -m src.benchmark_model \\
    --config fp16 \\
    --num-images 5 \\
    --num-steps 28 \\
    --output-dir benchmark_results/fp16_mem \\
    --skip-metrics"""
LANDSCAPE = 'uv run python capture_sample.py --prompt "a beautiful landscape"'
CAT = """uv run python capture_sample.py \\
    --model flux-schnell \\
    --width 512 \\
    --height 512 \\
    --prompt "a photo of a cat" \\
    --seed 42"""
OFFLOAD = 'uv run python capture_sample.py --prompt "your prompt" --offload'
MULTI_GPU = """uv run python capture_sample.py \\
    --prompt "a beautiful landscape" \\
    --multi_gpu True"""
RAW = 'uv run python capture_sample.py --prompt "a beautiful landscape" --should_decode_intermediates=False'
CALIBRATE = "python -m src.generate_calibration_data --num-images 10"
FILM = "uv run python create_visualization.py --generation_id a1b2c3d4"
FILMS = {
    FILM: (Video(), "gif", 4 * 6 + 1),
    f"{FILM} \\\n    --output_format mp4": (Video(output_format="mp4"), "mp4", None),
    f"{FILM} \\\n    --block_type double": (Video(block_type="double"), "gif", 4 * 2 + 1),
    f"{FILM} \\\n    --block_type single": (Video(block_type="single"), "gif", 4 * 4 + 1),
    f"{FILM} --block_type None": (Video(block_type="None"), "gif", 4 * 6 + 1),
    f"{FILM} \\\n    --max_blocks 5": (Video(max_blocks=5), "gif", 4 * 5 + 1),
    f"{FILM} \\\n    --fps 4.0 \\\n    --font_size 32": (Video(fps=4.0, font_size=32), "gif", 4 * 6 + 1),
}
PARSED = {
    LANDSCAPE: {"prompt": "a beautiful landscape", "output_dir": Path("output"), "seed": -1},
    CAT: {"width": 512, "height": 512, "prompt": "a photo of a cat", "seed": 42},
    OFFLOAD: {"prompt": "your prompt", "settings": CaptureSet(offload=True)},
    f"{LANDSCAPE} --offload False": {"settings": CaptureSet()},
    MULTI_GPU: {"settings": CaptureSet(multi_gpu=True)},
    RAW: {"settings": CaptureSet(should_decode_intermediates=False)},
    f"{LANDSCAPE} --num_steps 8 --guidance 3.0": {"num_steps": 8, "guidance": 3.0},
    f"{LANDSCAPE} --num-steps 8 --output_dir out --add_sampling_metadata False": {
        "num_steps": 8, "output_dir": Path("out"), "settings": CaptureSet(add_sampling_metadata=False),
    },
    CALIBRATE: {
        "prompt_csv": Path("all_prompts.csv"), "settings": Calibrate(num_images=10, num_steps=50, cfg_weight=7.5),
    },
    f"{CALIBRATE} --num-steps 20 --cfg-weight 5 --calib-dir d --prompt-csv all_prompts.csv --seed 3": {
        "calib_dir": Path("d"), "settings": Calibrate(num_images=10, num_steps=20, cfg_weight=5.0, seed=3),
    },
    CANONICAL: {
        "config": "fp16", "reference_dir": Path("calibration_data_100/images"), "prompts": (Path("all_prompts.csv"),),
        "output_dir": Path("benchmark_results/fp16_matched"),
        "settings": Benchmark(num_images=150, num_steps=100, cfg_scale=7.5),
    },
    QUICK: {
        "config": "fp16", "output_dir": Path("benchmark_results/fp16_mem"),
        "settings": Benchmark(num_images=5, num_steps=28, skip_metrics=True),
    },
    **{command: {"generation_id": "a1b2c3d4", "settings": settings} for command, (settings, *_) in FILMS.items()},
}  # fmt: skip
MODELS = {"capture": "flux-schnell", "calibrate": "sd3-medium", "benchmark": "sd3-medium"}


def arguments(command: str) -> list[str]:
    """The words of a printed command with `ditscope COMMAND` in the place of the program."""
    program = next(p for p in PROGRAMS if command.startswith(p))
    return [PROGRAMS[program], *shlex.split(command.removeprefix(program).replace("\\\n", " "))]


@pytest.fixture
def seen(monkeypatch):
    """What every command's function was called with, in place of the call."""
    calls, function_of = [], cli.function_of

    def stub(target):
        function = function_of(target)

        @wraps(function)
        def record(*given, **named):
            bound = inspect.signature(function).bind(*given, **named)
            bound.apply_defaults()
            calls.append(bound.arguments)

        return record

    monkeypatch.setattr(cli, "function_of", stub)
    return calls


@pytest.fixture(scope="module")
def pipelines(tmp_path_factory):
    """Random pipelines by the model of the default registry that they stand for."""
    folder = tmp_path_factory.mktemp("pipelines")
    return {"flux-schnell": save_tiny_flux(folder / "flux"), "sd3-medium": save_tiny_sd3(folder / "sd3")}


@pytest.fixture
def place(tmp_path, pipelines, monkeypatch) -> Path:
    """A working folder with the shipped models and prompts, and stand-ins where downloads go."""
    for name in ("models", "prompts", "all_prompts.csv"):
        (tmp_path / name).symlink_to(ROOT / name)
    for name, folder in pipelines.items():
        shutil.copytree(folder, tmp_path / source_folder(read_config([]).models[name]))
    (tmp_path / "calibration_data_100/images").mkdir(parents=True)
    (tmp_path / "output").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("command", PARSED)
def test_printed_commands_mean_what_they_did(command, place, seen):
    assert cli.main(arguments(command)) == 0
    (given,) = seen
    for name, value in PARSED[command].items():
        assert given[name] == value
    if model := MODELS.get(arguments(command)[0]):
        assert given["name"] == model and given["model"].source.count("/") == 1


def test_the_default_models_are_the_original_programs(seen, place):
    for command in (LANDSCAPE, f"{LANDSCAPE} --model flux-dev", f"{LANDSCAPE} --model flux-dev-krea", QUICK):
        assert cli.main(arguments(command)) == 0
    schnell, dev, krea, sd3 = (given["model"] for given in seen)
    for flux, steps in ((schnell, 4), (dev, 50), (krea, 50)):
        assert (flux.family, flux.width, flux.height, flux.steps, flux.guidance) == ("flux", 256, 256, steps, 2.5)
    assert (sd3.family, sd3.dtype, sd3.use_t5, sd3.steps, sd3.guidance) == ("sd3", "float16", False, 50, 7.5)


def test_a_capture_and_its_films_as_printed(place):
    assert cli.main(arguments(LANDSCAPE)) == 0
    (made,) = captures_in("output")
    about = read_metadata(made)
    reads_no_guidance = 0.0
    expected = {"model": "flux-schnell", "width": 256, "height": 256, "num_steps": 4, "guidance": reads_no_guidance}
    assert {key: about[key] for key in expected} == expected and about["derived_seed"]
    assert len(list(made.glob("intermediates/decoded/step_0/*.jpg"))) == 6
    made.rename("output/a1b2c3d4")
    for command, (settings, kind, frames) in FILMS.items():
        assert cli.main(arguments(command)) == 0, command
        film = Path(f"output/a1b2c3d4/visualization_a1b2c3d4.{kind}")
        if frames:
            with Image.open(film) as drawn:
                assert drawn.n_frames == frames and drawn.info["duration"] == 1000 / settings.fps
        assert film.stat().st_size > 1000
        film.unlink()


def test_raw_tensors_only_and_the_cat(place):
    assert cli.main(arguments(RAW)) == 0 and cli.main(arguments(CAT)) == 0
    raw, cat = sorted(captures_in("output"), key=lambda folder: read_metadata(folder)["width"])
    assert not (raw / "intermediates/decoded").exists() and Image.open(raw / "img_0.jpg").size == (256, 256)
    assert Image.open(cat / "img_0.jpg").size == (512, 512) and read_metadata(cat)["seed"] == 42


def test_a_calibration_set_as_printed_and_a_benchmark_matched_to_it(place, capsys):
    assert cli.main([*arguments(CALIBRATE)[:2], "2", "--num-steps", "3", "--calib-dir", "calibration_data_100"]) == 0
    folder = Path("calibration_data_100")
    manifest = json.loads((folder / "manifest.json").read_text())
    assert (manifest["n_completed"], manifest["num_steps"]) == (2, 3)
    assert manifest["sample_files"] == [f"samples/{i:05d}_{s:03d}.npz" for i in range(2) for s in range(3)]
    assert sorted(p.name for p in (folder / "images").iterdir()) == ["00000.png", "00001.png"]
    with np.load(folder / manifest["sample_files"][0]) as sample:
        assert {"x", "timestep", "sigma", "conditioning", "pooled_conditioning", "step_index"} <= set(sample.files)
        assert sample["conditioning"].shape[0] == 2
    assert len(validate_calibration(folder).samples) == 6
    (folder / "manifest.json").rename("manifest.json")  # as the loader of the original finds a set without one
    assert len(validate_calibration(folder).samples) == 6
    Path("manifest.json").rename(folder / "manifest.json")

    reduced = arguments(CANONICAL)
    reduced[reduced.index("150")], reduced[reduced.index("100")] = "3", "3"
    quick = ["--batches", "1", "--repeats", "1", "--warmup", "0"]
    assert cli.main([*reduced, *quick]) == 0
    out = Path("benchmark_results/fp16_matched")
    (run,) = read_table(out / "fp16-eager.parquet", "benchmark.run").to_dicts()
    assert (run["model"], run["dtype"], run["kind"], run["images"]) == ("sd3-medium", "float16", "base", 3)
    quality = read_table(out / "quality.parquet", "benchmark.quality")
    assert quality.filter(metric="fid")["value"][0] is not None
    reduced[reduced.index("7.5")] = "5.0"
    assert cli.main([*reduced, *quick]) == 2
    refusal = capsys.readouterr().err.splitlines()[-1]
    assert "made with guidance 7.5, this run has 5.0" in refusal and "calibration_data_100/manifest.json" in refusal


def test_latency_and_memory_alone_as_printed(place):
    assert cli.main([*arguments(QUICK), "--repeats", "2", "--warmup", "0"]) == 0
    out = Path("benchmark_results/fp16_mem")
    (timing,) = read_table(out / "fp16-eager.timing.parquet", "benchmark.run.timing").to_dicts()
    assert timing["latency_median_ms"] > 0 and not (out / "quality.parquet").exists()


def test_pictures_of_another_program_are_a_reference(place, capsys):
    """A manifest of steps and a count, and pictures beside it: what it says is compared, what it does not is said."""
    folder = Path("calibration_data_100")
    for i in range(3):
        Image.new("RGB", (512, 512), (90 * i, 20, 70)).save(folder / f"images/img_{i}.jpg")
    command = arguments(CANONICAL)
    command[command.index("150")], command[command.index("100")] = "2", "2"
    command += ["--batches", "1", "--repeats", "1", "--warmup", "0"]
    assert cli.main(command) == 2
    assert "calibration_data_100/images" in capsys.readouterr().err  # nothing says how they were made
    (folder / "manifest.json").write_text(json.dumps({"n_completed": 3, "num_steps": 100}))
    assert cli.main(command) == 2
    assert "made with steps 100, this run has 2" in capsys.readouterr().err
    (folder / "manifest.json").write_text(json.dumps({"n_completed": 3, "num_steps": 2}))
    assert cli.main(command) == 0
    assert "does not say its guidance, which is not compared with this run's 7.5" in capsys.readouterr().err
    quality = read_table("benchmark_results/fp16_matched/quality.parquet", "benchmark.quality")
    assert quality.filter(metric="fid")["n"][0] == 2


# Which value wins -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ([], (10, 50, 7.5)),
        (["--configfile", "config.yaml"], (8, 8, 2.0)),
        (["--configfile", "config.yaml", "--num-steps", "5"], (8, 5, 2.0)),
        (["--num-steps", "5"], (10, 5, 7.5)),
    ],
)
def test_typed_then_config_then_the_original_default(typed, expected, seen, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert cli.main(["calibrate", *typed]) == 0
    settings = seen[0]["settings"]
    assert (settings.num_images, settings.num_steps, settings.cfg_weight) == expected
    of_config = "--configfile" in typed
    assert seen[0]["name"] == ("shapes-flux" if of_config else "sd3-medium")
    assert seen[0]["prompt_csv"] == Path("prompts/demo.csv" if of_config else "all_prompts.csv")


def test_other_stages_take_their_section_of_the_config_too(seen, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    overlay = tmp_path / "o.yaml"
    overlay.write_text(
        "capture: {models: [shapes-flux], sets: {all: {steps: '0', blocks: 'double:*'}, few: {steps: '-1'}}}\n"
        "benchmark: {repeats: 9}\nvideo: {fps: 7.0}\nsensitivity: {bits: [3]}\ndrift: {shuffles: 5}\n"
        "plan: {budgets: {4bit: {mean_bits: 4.5}, 3bit: {mean_bits: 3.5}}}\n"
    )
    file, out = str(overlay), ["--out", str(tmp_path / "x")]
    over = ["--configfile", file]
    commands = (
        ["capture", "--prompt", "p"], ["capture", "--prompt", "p", "--capture-set", "few", "--blocks", "single:*"],
        ["benchmark", "--output-dir", str(tmp_path)], ["video", "--generation_id", "a", "--output_dir", str(tmp_path)],
        ["sensitivity", "--calibration", str(tmp_path), *out],
        ["trajectory-video", "--tables", file, "--images", file, *out],
        ["drift", "--embeddings", file, "--trajectories", file, "--folder", str(tmp_path)],
        ["plan", "--model", "m", "--sensitivity", file, *out],
        ["plan", "--model", "m", "--sensitivity", file, *out, "--budget-name", "3bit"],
        ["plan", "--model", "m", "--sensitivity", file, *out, "--uniform-bits", "2"],
    )  # fmt: skip
    for command in commands:
        assert cli.main([*command, *over]) == 0
    first, few, bench, film, layers, mosaic, drifts, plan, three, two = seen
    assert (first["settings"].steps, first["settings"].blocks) == ("0", "double:*")
    assert (few["settings"].steps, few["settings"].blocks) == ("-1", "single:*")
    assert bench["settings"].repeats == 9 and bench["prompts"] == [Path("prompts/demo.csv")]
    assert bench["compile"] == "eager", "the config's list of compile states is another thing than the option"
    assert film["settings"].fps == mosaic["settings"].fps == 7.0 and layers["settings"].bits == [3]
    assert drifts["settings"].shuffles == 5
    assert (plan["budget"].mean_bits, plan["budget_name"]) == (4.5, "4bit")
    assert three["budget"].mean_bits == 3.5 and (two["budget"].mean_bits, two["budget"].uniform_bits) == (0.0, 2)


def test_help_shows_the_default_that_applies(capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    for more, shown in (([], ("10", "50", "7.5", "sd3-medium")), (["--configfile", "config.yaml"], ("8", "8", "2.0"))):
        with pytest.raises(SystemExit):
            cli.main(["calibrate", "--help", *more])
        text = " ".join(capsys.readouterr().out.split())
        assert all(f"(default: {value})" in text for value in shown)
        assert "what is typed, else the files of --configfile" in text
    with pytest.raises(SystemExit):
        cli.main(["capture", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "(default: the model's own)" in text and "flux-schnell: steps 4, guidance 2.5, size 256 x 256" in text
