"""What users bring of their own, looked at before work starts: products of stages, and modules by path."""

from collections.abc import Iterator
from pathlib import Path

from ditscope.config import Config
from ditscope.core.errors import InputError
from ditscope.core.names import unknown
from ditscope.models.call_files import SUFFIX
from ditscope.models.settings import CALIBRATE, calibration_of
from ditscope.prompts.files import read_prompts
from ditscope.publish.figures import FIGURES, INDEX
from ditscope.refine.endings import FILMS, PICTURES
from ditscope.refine.positions import check_positions
from ditscope.refine.settings import settings_of
from ditscope.workflow.staleness import module_path

# What the `sources` of a stage hold, and how such files end.
HOLDS = {
    "generate": ("picture or shard", (".png", ".jpg", ".jpeg", ".webp", ".tar")),
    "capture": ("capture", (".safetensors", ".pt")),
    "calibrate": ("calibration sample", (".npz", SUFFIX)),
}
# The same of the `folder` of a refiner's source, by its kind.
FOLDER_HOLDS = {"images": ("picture", PICTURES), "films": ("film", (*FILMS, *PICTURES)), "shards": ("shard", (".tar",))}


def check_sources(config: Config) -> None:
    """Refuse, by its key, a path that holds nothing of what it is given for, and a module that is not here."""
    for stage, (what, endings) in HOLDS.items():
        for name, path in getattr(config, stage).sources.items():
            check_source(f"{stage}.sources.{name}", Path(path), what, endings)
    for model, name in config.quantized():
        folder = calibration_of(config.schemes[name])
        if folder and folder != CALIBRATE:
            where = f"schemes.{name}.calibration"
            check_source(where, Path(folder.replace("{model}", model)), *HOLDS["calibrate"])
    for name in config.refine.refiners:
        own = settings_of(name, config.refiners[name], config.refine)  # where it goes on from a file: is it there?
        if own.encoder_weights and not Path(own.encoder_weights).exists():
            raise InputError(f"refiners.{name}: no such file or folder: {own.encoder_weights} (encoder_weights)")
        if "refine" in config.asked():
            check_storyboards(config, name)
        source = config.refiners[name].source
        if source.folder and source.kind in FOLDER_HOLDS:
            check_source(f"refiners.{name}.source.folder", Path(source.folder), *FOLDER_HOLDS[source.kind])
    for name in config.embed.embedders:
        if config.embedders[name].family == "vectors":
            check_source(f"embedders.{name}.source", Path(config.embedders[name].source), "table", (".parquet",))
    for name in config.analyse.analyses:
        if name in FIGURES or f"{name}.csv" == INDEX:
            raise InputError(f"analyse.analyses.{name}: a figure of the library has this name; choose another")
    for where, module in own_modules(config):
        if not module_path(module).exists():
            raise InputError(
                f"{where}: no module `{module}` here; put its package into the working folder, or install it"
            )


def check_storyboards(config: Config, refiner: str) -> None:
    """Refuse a storyboard of a prompt that the study does not have, and more keys than it has frames."""
    boards = config.refiners[refiner].storyboards
    known = [p.prompt_id for p in read_prompts(config.prompts.csv, config.prompts.limit)] if boards else []
    for board, told in boards.items():
        where = f"refiners.{refiner}.storyboards.{board}"
        if bool(told.prompts) == bool(told.pictures):
            raise InputError(f"{where}: name `prompts` of a model or files of `pictures`, one of the two")
        for file in filter(None, [*told.pictures, told.refiner]):
            if not Path(file).is_file():
                raise InputError(f"{where}: no such file: {file}")
        for prompt in told.prompts:
            if prompt not in known:
                raise InputError(unknown(f"{where}.prompts", prompt, known, "the prompt_id of a prompt"))
        count = len(told.prompts or told.pictures)
        if told.positions and len(told.positions) != count:
            raise InputError(f"{where}.positions: {len(told.positions)} for {count} pictures; give one of each")
        if told.frames:
            try:
                check_positions(told.positions or range(count), told.frames)
            except InputError as error:
                raise InputError(f"{where}: {error}") from None


def check_source(where: str, path: Path, what: str, endings: tuple[str, ...]) -> None:
    """Refuse a path that is not there, or leads to no file with one of these endings."""
    if not path.exists():
        raise InputError(f"{where}: no such file or folder: {path}")
    files = path.rglob("*") if path.is_dir() else [path]
    if not any(file.suffix.lower() in endings for file in files):
        raise InputError(f"{where}: {path} holds no {what} (a file that ends in {', '.join(endings)})")


def own_modules(config: Config) -> Iterator[tuple[str, str]]:
    """Where the config names a module of the user's own that this study uses, and its dotted path."""
    schemes = {*config.benchmark.schemes, *config.benchmark.checkpoints}
    schemes |= {entry.partition(":")[2] for name in config.trajectories.networks for entry in config.networks[name]}
    embedders = {*config.embed.embedders, config.blocks.features, config.ablate.features}
    named = [
        *((f"models.{name}.family", config.models[name].family) for name in config.selected_models()),
        *((f"schemes.{name}.kind", config.schemes[name].kind) for name in config.schemes if name in schemes),
        *(
            (f"embedders.{name}.family", config.embedders[name].family)
            for name in config.embedders
            if name in embedders
        ),
    ]
    for name in config.refine.refiners:
        where, source = f"refiners.{name}.source", config.refiners[name].source
        named += [(f"{where}.kind", source.kind), (f"{where}.adapter", source.adapter)]
    yield from ((where, path) for where, path in named if "." in path)
    if "analyse" in config.asked():
        yield from ((f"analyse.analyses.{name}.module", a.module) for name, a in config.analyse.analyses.items())
