"""What `ditscope doctor` checks of the stage `video`."""

import binascii
from base64 import b64decode
from pathlib import Path

from ditscope.core.checksums import files_of
from ditscope.core.errors import InputError
from ditscope.core.picture_file import check_mp4
from ditscope.core.study import Study, check_picture

SOURCE = b'src="data:video/mp4;base64,'
END = b"</html>\n"


def check_video(study: Study) -> None:
    """GIFs, sheets and strips can be decoded to their last frame; MP4 films, also those in pages, are whole."""
    for file in study.targets("video"):
        path = study.results / file
        if not path.exists():
            continue
        with study.noting("video", file):
            if path.is_dir():  # of sheets
                for sheet in files_of(path):
                    check_picture(sheet)
                if path.name in ("timelines", "strips"):
                    check_names(study, path)
            elif path.suffix == ".mp4":
                check_mp4(path.read_bytes())
            elif path.suffix == ".html":
                check_page(path.read_bytes())
            else:
                check_picture(path)


def check_names(study: Study, folder: Path) -> None:
    """Refuse a folder that has not one sheet per network."""
    names = {path.name for path in files_of(folder)}
    wanted = {f"{name}.{study.config.video.sheet_format}" for name in study.config.trajectories.networks}
    if names != wanted:
        raise InputError(f"holds {', '.join(sorted(names)) or 'nothing'}, not {', '.join(sorted(wanted))}")


def check_page(data: bytes) -> None:
    """Refuse a page that does not end, or holds no whole film."""
    if not data.endswith(END):
        raise InputError("does not end with </html>")
    _, _, film = data.partition(SOURCE)
    try:
        check_mp4(b64decode(film.partition(b'"')[0], validate=True))
    except binascii.Error:
        raise InputError("holds no film in base64") from None
