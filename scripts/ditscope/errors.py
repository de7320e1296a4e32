"""The one exception that a user is meant to read."""


class InputError(ValueError):
    """Bad input: one line that names the file, the row or key, and the mend."""
