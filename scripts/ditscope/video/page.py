"""Films as files: in the format that is asked for, and in H.264 in a page that plays it."""

from base64 import b64encode
from html import escape
from pathlib import Path

from ditscope.core.atomic import write_text
from ditscope.core.errors import InputError
from ditscope.core.films import Frames, mp4_bytes, write_film
from ditscope.video.settings import Video

PAGE = """<!DOCTYPE html>
<html lang="en">
<meta charset="utf-8">
<title>{title}</title>
<style>body {{ margin: 0; background: #fff; }} video {{ max-width: 100%; max-height: 100vh; }}</style>
<video controls autoplay loop muted playsinline title="{title}" src="{source}{data}"></video>
</html>
"""
SOURCE = "data:video/mp4;base64,"


def write_films(frames: Frames, out: Path, page: Path | None, settings: Video, title: str) -> None:
    """Write a film to `out`, and to `page`, where it is given, a page that plays it in H.264.

    The suffix of `out` says whether it is a GIF or an MP4.
    """
    codec = "h265" if settings.output_format == "mp4-h265" else "h264"
    if codec == "h265" and out.suffix != ".mp4":
        raise InputError(f"{out}: H.265 stands in a file .mp4; name one, or take another output_format")
    write_film(frames, out, settings.fps, codec)
    if page is not None:
        data = b64encode(mp4_bytes(frames, settings.fps, "h264-small")).decode()
        write_text(page, PAGE.format(title=escape(title), source=SOURCE, data=data))
