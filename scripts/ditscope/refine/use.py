"""Use a refiner: a storyboard to a film, a picture of which patches are kept to a whole one, waypoints to a path."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from PIL import Image

from ditscope.core.atomic import make_folder, replacing, write_text
from ditscope.core.errors import InputError
from ditscope.core.identity import file_digest
from ditscope.core.paths import InputFile, OutputFolder
from ditscope.core.picture_file import pixels, whole
from ditscope.refine.adapter import Adapter, load_adapter
from ditscope.refine.data_settings import Source
from ditscope.refine.evaluate import INTERPOLATED, REFINED, standardised, stored
from ditscope.refine.grids import Grid
from ditscope.refine.inference import conditions_of, interpolate, refined
from ditscope.refine.keys import draw_orders, given_keys, key_grid
from ditscope.refine.maze_file import Maze, read_maze
from ditscope.refine.mazes import draw as draw_maze
from ditscope.refine.mazes import maze_tokens
from ditscope.refine.patches import patch_sides, patchify, token_grid, unpatchify
from ditscope.refine.pictures import (
    beside,
    compared,
    enlarged,
    given_only,
    key_frames_of,
    save_film,
    save_png,
    still_of,
)
from ditscope.refine.refiner_file import Trained, load_refiner
from ditscope.refine.text import load_text_encoder

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".npy")
SPOKEN = "from row {} column {} to row {} column {}"  # the prompt of a maze, as in its data


@dataclass(frozen=True)
class Named:
    """A picture (height, width, 3) uint8, or values (channels, y, x) float32, and what messages call it."""

    name: str
    picture: np.ndarray


@dataclass(frozen=True)
class Given:
    """What a refiner is to complete: values of which some nodes are known."""

    values: np.ndarray  # (channels, *space) as they are stored; of missing nodes anything
    keys: np.ndarray  # (nodes,) bool
    prompt: str
    text: np.ndarray  # (words, width)
    truth: bool  # whether the values of missing nodes are the true ones


@dataclass(frozen=True)
class Completed:
    """What became of it, as values (channels, *space), and as pictures by name where they decode."""

    interpolated: np.ndarray
    refined: np.ndarray
    nodes: Grid


def refine_apply(
    refiner: InputFile,
    out: OutputFolder,
    storyboard: list[Annotated[Path, "key pictures of a film in order: a folder, or files (npy: values)"]] = [],  # noqa: B006
    image: Annotated[str, "a picture of which --keep is known"] = "",
    path: Annotated[str, "a maze to find a way through, as text: # wall, S start, G goal, a b c waypoints"] = "",
    prompt: Annotated[str, "what it is a picture or film of"] = "",
    frames: Annotated[int, "frames of the film (0: up to the last position), or points of the path (0: 32)"] = 0,
    positions: list[Annotated[int, "frames, or points, from 0, at which the keys stand; none: evenly"]] = [],  # noqa: B006
    keep: Annotated[str, "what of the picture is known: a number of patches, or a mask (white: known)"] = "",
    seed: Annotated[int, "of the patches that are kept, and of noise where the refiner was trained with some"] = 0,
    fps: Annotated[float, "frames per second of films"] = 6.0,
    film_format: Annotated[str, "gif or mp4"] = "gif",
) -> None:
    """Complete a storyboard, a picture or a path by a trained refiner, and show it beside its interpolation.

    Give one of `storyboard`, `image` and `path`. Of a storyboard with as many pictures as frames those at `positions`
    are keys, and the others are shown as the truth. Leaves in `out`: `compared` (interpolated, refined and, where it
    is known, true, with keys marked), `interpolated` and `refined`, `refined.npy` (values) and `applied.json`.
    """
    check_request(storyboard, image, path, film_format, fps)
    trained = load_refiner(refiner)
    adapter = load_adapter(trained.adapter)
    check_keys_of(trained, storyboard, image, path)
    if storyboard:
        given = film_of(trained, adapter, pictures_in(storyboard), prompt, frames, positions)
    elif image:
        given = picture_of(trained, adapter, Named(image, read_picture(Path(image))), prompt, keep, seed)
    else:
        given = path_of(trained, read_maze(Path(path)), frames or Source().path_steps, positions)
    done = complete(trained, given, seed)
    make_folder(out)
    show(trained, adapter, given, done, out, fps, film_format)
    told = {
        "schema_version": "1",
        "refiner": {"file": refiner.name, "sha256": file_digest(refiner)},
        "prompt": given.prompt,
        "known": np.flatnonzero(given.keys).tolist(),
        "nodes": list(done.nodes),
        "seed": seed,
    }
    write_text(out / "applied.json", json.dumps(told, indent=2, sort_keys=True) + "\n")


def check_request(storyboard: Sequence[Path], image: str, path: str, film_format: str, fps: float) -> None:
    """Refuse no request, or several, and films of another kind, before anything loads."""
    if sum(map(bool, (storyboard, image, path))) != 1:
        raise InputError("give one of --storyboard, --image and --path")
    if film_format not in ("gif", "mp4"):
        raise InputError(f"--film-format: `{film_format}`; films are gif or mp4")
    if not 0.01 <= fps <= 50:
        raise InputError(f"--fps: {fps:g}; choose 0.01 to 50 frames per second")


def check_keys_of(trained: Trained, storyboard: Sequence[Path], image: str, path: str) -> None:
    """Refuse what is not what the refiner was trained on."""
    axes = 3 if storyboard else 2 if image else 1
    if trained.network.config.axes != axes:
        kinds = {1: "paths; give --path", 2: "pictures; give --image", 3: "films; give --storyboard"}
        raise InputError(f"this refiner was trained on {kinds[trained.network.config.axes]}")


# Storyboards --------------------------------------------------------------------------------------------------------


def pictures_in(storyboard: Sequence[Path]) -> list[Named]:
    """The pictures of files and folders; those of a folder by name, numbers in it by size. InputError for none."""
    files: list[Path] = []
    for place in storyboard:
        if place.is_dir():
            inside = [file for file in place.iterdir() if file.suffix.lower() in PICTURES]
            if not inside:
                raise InputError(f"{place}: no pictures in it (png, jpg, webp or npy); put the key frames there")
            files += sorted(inside, key=by_number)
        else:
            files.append(place)
    return [Named(str(file), read_picture(file)) for file in files]


def check_alike(read: Sequence[Named]) -> None:
    """Refuse pictures that are not all of one size."""
    first = read[0]
    for one in read:
        if one.picture.shape != first.picture.shape or one.picture.dtype != first.picture.dtype:
            sizes = size_of(one.picture), size_of(first.picture)
            raise InputError(f"{one.name}: is {sizes[0]}, and {first.name} {sizes[1]}; give frames of one size")


def by_number(file: Path) -> tuple[Any, ...]:
    """A file's name as text and numbers in turn, so that 10 comes after 9."""
    parts, number = [], ""
    for letter in file.name + "/":
        if letter.isdigit():
            number += letter
            continue
        parts += [(0, int(number), "")] if number else []
        parts.append((1, 0, letter))
        number = ""
    return tuple(parts)


def size_of(picture: np.ndarray) -> str:
    """How large a picture is, or values are, in words."""
    return f"{picture.shape[1]} x {picture.shape[0]} pixels" if picture.dtype == np.uint8 else f"of {picture.shape}"


def read_picture(file: Path) -> np.ndarray:
    """A picture (height, width, 3) uint8, or the numbers (channels, y, x) float32 of a .npy file."""
    try:
        data = file.read_bytes()
    except FileNotFoundError:
        raise InputError(f"{file}: no such file; name a picture") from None
    except IsADirectoryError:
        raise InputError(f"{file}: a folder; name a picture") from None
    if file.suffix.lower() == ".npy":
        return read_values_file(file)
    try:
        with whole():
            return pixels(data).copy()
    except InputError as error:
        raise InputError(f"{file}: {error}") from None


def read_values_file(file: Path) -> np.ndarray:
    """The numbers of a key frame."""
    try:
        values = np.load(file, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise InputError(f"{file}: not a readable array ({error}); save it by numpy.save") from None
    if values.ndim != 3 or not np.issubdtype(values.dtype, np.floating):
        raise InputError(f"{file}: has the shape {values.shape} and type {values.dtype}, not floats (channels, y, x)")
    if not np.isfinite(values).all():
        raise InputError(f"{file}: has NaN or Inf; give finite values")
    return values.astype(np.float32)


def film_of(
    trained: Trained,
    adapter: Adapter,
    read: Sequence[Named],
    prompt: str,
    frames: int,
    positions: Sequence[int],
) -> Given:
    """A film of which key frames are known, at `positions`, or evenly from the first to the last frame."""
    check_alike(read)
    frames = frames or (max(positions) + 1 if positions else 0)
    if frames < 1:
        raise InputError("--frames: say how many frames the film has, or at which --positions the pictures stand")
    all_there = bool(positions) and len(read) == frames != len(positions)
    if positions and not all_there and len(positions) != len(read):
        raise InputError(f"--positions: {len(positions)} for {len(read)} pictures; give one of each")
    if not positions:
        given_keys(range(len(read)), frames)  # refuses more pictures than frames
        positions = np.linspace(0, frames - 1, len(read)).round().astype(int).tolist() if len(read) > 1 else [0]
    known = given_keys(positions, frames)
    if known.all():
        raise InputError(f"--frames: all {frames} are given, so nothing is left to refine; give more frames")
    encoded = encode_frames(adapter, np.stack([one.picture for one in read]), read[0].name)
    values = np.zeros((encoded.shape[0], frames, *encoded.shape[2:]), np.float32)
    values[:, np.arange(frames) if all_there else np.flatnonzero(known)] = encoded
    check_shape(trained, values, read[0].name)
    nodes = key_grid(token_grid(values.shape[1:], trained.settings.patch), trained.settings.keys)
    keys = known.repeat(int(np.prod(nodes)) // frames)
    return Given(values, keys, prompt, text_of(trained, prompt), all_there)


def encode_frames(adapter: Adapter, pictures: np.ndarray, name: str) -> np.ndarray:
    """Values (channels, frames, y, x) of pictures (frames, height, width, 3), or of values (frames, channels, y, x)."""
    if pictures.dtype != np.uint8:
        return pictures.transpose(1, 0, 2, 3)
    if adapter.encode is None:
        raise InputError(f"{name}: this refiner's values have no encoder of pictures; give key frames as .npy")
    return np.asarray(adapter.encode(pictures[None]))[0]


def check_shape(trained: Trained, values: np.ndarray, name: str) -> None:
    """Refuse values (channels, *space) that a refiner's tokens do not fit."""
    config, settings = trained.network.config, trained.settings
    if values.shape[0] != config.channels:
        raise InputError(f"{name}: has {values.shape[0]} channels, the refiner's values {config.channels}")
    sides = patch_sides(config.axes, settings.patch)
    if any(n % side for n, side in zip(values.shape[1:], sides, strict=True)):
        raise InputError(
            f"{name}: its values are {values.shape[1:]}, of which patches of {settings.patch} leave a rest; "
            "give pictures of a size like those that the refiner was trained on"
        )


def text_of(trained: Trained, prompt: str) -> np.ndarray:
    """Text tokens (words, width) of a prompt; none where it is empty, or the refiner reads no text."""
    width = trained.network.config.text_width
    if not prompt or not width:
        return np.zeros((0, width), np.float32)
    if not trained.text:
        raise InputError("--prompt: the refiner's text tokens came with its data, by no encoder that it names; omit it")
    return load_text_encoder(trained.text)([prompt])[0].astype(np.float32)


# Pictures and paths -------------------------------------------------------------------------------------------------


def picture_of(trained: Trained, adapter: Adapter, one: Named, prompt: str, keep: str, seed: int) -> Given:
    """A picture of which the patches are known that `keep` tells."""
    picture = one.picture
    if adapter.encode is None and picture.dtype == np.uint8:
        raise InputError(f"{one.name}: this refiner's values have no encoder of pictures; give them as .npy")
    encode: Any = adapter.encode
    values = picture if picture.dtype != np.uint8 else np.asarray(encode(picture[None]))[0]
    check_shape(trained, values, one.name)
    grid = token_grid(values.shape[1:], trained.settings.patch)
    keys = kept(keep, grid, picture, seed)
    return Given(values, keys, prompt, text_of(trained, prompt), True)


def kept(keep: str, grid: Grid, picture: np.ndarray, seed: int) -> np.ndarray:
    """Which patches (nodes,) are known: as many as `keep` says, at random, or those that are white in its mask."""
    nodes = int(np.prod(grid))
    if keep.isdecimal():
        count = int(keep)
        if not 1 <= count < nodes:
            raise InputError(f"--keep: {count} of {nodes} patches; keep at least 1, and leave some to refine")
        return np.asarray(np.random.default_rng(seed).permutation(nodes) < count)
    if not keep:
        raise InputError(f"--keep: say how many of the {nodes} patches are known, or name a mask")
    mask = read_picture(Path(keep))
    if mask.dtype != np.uint8 or (picture.dtype == np.uint8 and mask.shape != picture.shape):
        raise InputError(f"{keep}: is {size_of(mask)}, the picture {size_of(picture)}; draw the mask over the picture")
    white = np.asarray(Image.fromarray(mask).convert("L").resize((grid[1], grid[0]), Image.Resampling.BOX)) >= 254
    if not white.any() or white.all():
        raise InputError(f"{keep}: {white.sum()} of {nodes} patches are wholly white; some must be, and not all")
    return white.ravel()


def path_of(trained: Trained, maze: Maze, points: int, positions: Sequence[int]) -> Given:
    """A path through a maze of which start, waypoints and goal are known, at `positions`, or in step with the way."""
    cells = trained.network.config.text_width // 4
    if len(maze.walls) != cells:
        raise InputError(f"--path: the maze has {len(maze.walls)} cells a side, the refiner's mazes {cells}")
    positions = list(positions) or maze.positions(points)
    if len(positions) != len(maze.stops):
        raise InputError(f"--positions: {len(positions)} for {len(maze.stops)} stops; give one of each, S and G too")
    keys = given_keys(positions, points, "points")
    values = maze.way(points)
    values[:, keys] = np.array(maze.stops, np.float32).T
    ends = maze.stops[0], maze.stops[-1]
    return Given(values, keys, SPOKEN.format(*ends[0], *ends[1]), maze_tokens(maze.walls, *ends), True)


# Completing and showing ---------------------------------------------------------------------------------------------


def complete(trained: Trained, given: Given, seed: int = 0) -> Completed:
    """Interpolate and refine what is missing; of missing nodes nothing is looked at."""
    settings = trained.settings
    grid = token_grid(given.values.shape[1:], settings.patch)
    clean = patchify(standardised(given.values[None], trained), settings.patch)
    each = clean.shape[1] // len(given.keys)
    clean = np.where(given.keys.repeat(each)[:, None], clean, 0)
    keys, count = given.keys[None], int(given.keys.sum())
    orders = draw_orders(np.random.default_rng(seed), 1, len(given.keys), given.keys)
    text = given.text[None]
    told = conditions_of(trained, [given.prompt], text, np.ones(text.shape[:2], bool), clean, keys)
    tokens = interpolate(clean, keys, grid, settings), refined(trained, clean, orders, count, grid, told, seed)
    filled, better = (stored(unpatchify(t, grid, settings.patch), trained)[0] for t in tokens)
    return Completed(filled, better, key_grid(grid, settings.keys))


def show(
    trained: Trained, adapter: Adapter, given: Given, done: Completed, out: Path, fps: float, film_format: str
) -> None:
    """Write the values, and pictures or films of them where they decode."""
    with replacing(out / "refined.npy") as partial, open(partial, "wb") as file:
        np.save(file, done.refined, allow_pickle=False)
    values = {INTERPOLATED: done.interpolated, REFINED: done.refined} | ({"truth": given.values} if given.truth else {})
    if given.values.ndim == 2:
        text = given.text[None]
        drawn = {name: draw_maze(v[None], text)[0] for name, v in values.items()}
        keys = draw_maze(given.values[None][:, :, given.keys], text, joined=False)[0]
    elif adapter.decode is None:
        return
    else:
        stack = adapter.decode(np.stack(list(values.values())))
        drawn = dict(zip(values, stack, strict=True))
        keys = given_only(adapter.decode(given.values[None])[0], given.keys, done.nodes)
    key_frames = key_frames_of(given.keys, done.nodes, len(keys)) if keys.ndim == 4 else None
    if key_frames is None:
        save_png(compared({"keys": keys} | drawn), out / "compared.png")
        for name in (INTERPOLATED, REFINED):
            save_png(enlarged(drawn[name]), out / f"{name}.png")
        return
    save_film(drawn, key_frames, out / f"compared.{film_format}", fps)
    save_png(stacked(drawn, key_frames), out / "compared.png")
    for name in (INTERPOLATED, REFINED):
        save_film({name: drawn[name]}, key_frames, out / f"{name}.{film_format}", fps)
        make_folder(out / name)
        for number, frame in enumerate(drawn[name]):
            save_png(Image.fromarray(frame), out / name / f"{number:04d}.png")


def stacked(films: dict[str, np.ndarray], key_frames: np.ndarray) -> Image.Image:
    """Films as strips, one below the other."""
    strips = [beside({name: still_of(film, key_frames)}) for name, film in films.items()]
    sheet = Image.new("RGB", (strips[0].width, sum(s.height for s in strips)), "white")
    top = 0
    for image in strips:
        sheet.paste(image, (0, top))
        top += image.height
    return sheet
