"""Check a capture folder against its own metadata: light, without torch, for `ditscope doctor` and for readers."""

from pathlib import Path

from ditscope.capture.files import (
    drawn_files,
    film_file,
    has_frames,
    intermediates_of,
    is_video,
    picture_file,
    read_metadata,
)
from ditscope.core.errors import InputError, line
from ditscope.core.identity import file_digest
from ditscope.core.paths import is_inside
from ditscope.core.picture_file import check_mp4, decode_picture
from ditscope.core.tables import read_table


def verify(folder: Path | str) -> list[str]:
    """What is wrong with one capture (its generation folder), a line for each file; empty where it is whole.

    Every tensor file against its size and sha256, the pictures, the table of statistics, and no file that the
    metadata does not know. Each line ends with the fix.
    """
    try:
        metadata = read_metadata(folder)
    except InputError as error:
        return [str(error)]
    intermediates = intermediates_of(folder)
    faults = [line for name, about in metadata["files"].items() if (line := check_file(intermediates / name, about))]
    for file in sorted(intermediates.iterdir()):
        if file.suffix in (".safetensors", ".pt", ".partial") and file.name not in metadata["files"]:
            faults.append(f"{file}: no part of the capture; move it elsewhere")
    pictures = drawn_files(intermediates, metadata)
    if intermediates != Path(folder):
        try:
            read_table(Path(folder) / "statistics.parquet", "capture_statistics")
            pictures.append(picture_file(folder))
            pictures += [film_file(pictures[-1])] if is_video(metadata) else []
            if has_frames(metadata):
                read_table(Path(folder) / "frames.parquet", "capture_frames")
        except InputError as error:
            faults.append(f"{error}; capture it again")
    return faults + [line for picture in pictures if (line := check_picture(picture))]


def check_file(path: Path, about: dict) -> str:
    """What is wrong with a tensor file, given its sha256 and bytes; empty where nothing is."""
    if not is_inside(path.name) or not path.exists():
        return f"{path}: missing from the capture; capture it again"
    if (size := path.stat().st_size) != about["bytes"]:
        return f"{path}: has {size:,} bytes, {about['bytes']:,} were captured; capture it again"
    if file_digest(path, 256) != about["sha256"]:
        return f"{path}: not the bytes that were captured (its sha256 differs); capture it again"
    return ""


def check_picture(path: Path) -> str:
    """What is wrong with a picture or film; empty where it can be read."""
    try:
        (check_mp4 if path.suffix == ".mp4" else decode_picture)(path.read_bytes())
    except (InputError, OSError) as error:
        return f"{path}: {line(error)}; capture it again"
    return ""
