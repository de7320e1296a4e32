"""Plug-ins: the module that a name of the config stands for, in one of the library's registries or the user's own."""

import sys
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from types import ModuleType

from ditscope.core.errors import InputError
from ditscope.core.names import unknown


def module_of(name: str, registry: Mapping[str, str], where: str, what: str) -> str:
    """The path of the module that a name stands for: a line of the registry, or, where it has a dot, its own path."""
    if name not in registry and "." not in name:
        raise InputError(unknown(where, name, registry, what))
    return registry.get(name, name)


def load_plugin(name: str, registry: Mapping[str, str], where: str, what: str) -> ModuleType:
    """The module that a name stands for, loaded; one of the user's own is looked for in the working folder too.

    Raises InputError, with the reason, for a name that is not in the registry and cannot be imported.
    """
    path = module_of(name, registry, where, what)
    if path != name:
        return import_module(path)
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)
    try:
        return import_module(path)
    except (ImportError, SyntaxError) as error:
        raise InputError(f"{where}: `{name}` cannot be imported ({error}); name a module of a package here") from None
