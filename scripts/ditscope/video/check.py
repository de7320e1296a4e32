"""What `ditscope doctor` checks of the stage `video`."""

from ditscope.core.checksums import files_of
from ditscope.core.errors import InputError
from ditscope.core.study import Study, check_picture


def check_video(study: Study) -> None:
    """Videos can be decoded to their last frame (GIF), or are of their kind (MP4); contact sheets are pictures."""
    for file in study.targets("video"):
        path = study.results / file
        if not path.exists():
            continue
        with study.noting("video", file):
            if path.is_dir():  # contact sheets
                for sheet in files_of(path):
                    check_picture(sheet)
            elif path.suffix == ".gif":
                check_picture(path)
            elif b"ftyp" not in path.read_bytes()[:16]:
                raise InputError("not an MP4 file")
