"""The one exception that a user is meant to read, and those that damaged files may raise on the way to it."""

import struct
import tokenize
import zipfile
import zlib

# What parsers of the standard library, NumPy and PyYAML raise on damaged or hostile bytes.
UNREADABLE: tuple[type[Exception], ...] = (
    OSError, EOFError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, MemoryError, RuntimeError,
    SyntaxError, tokenize.TokenError, struct.error, zlib.error, zipfile.BadZipFile,
)  # fmt: skip


class InputError(ValueError):
    """Bad input: one line that names the file, the row or key, and the mend."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()) if len(message.splitlines()) > 1 else message)


def line(error: BaseException) -> str:
    """What an exception says, on one line."""
    return " ".join(str(error).split()) or type(error).__name__
