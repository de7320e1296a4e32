"""Settings of the stage `analyse`."""

from dataclasses import dataclass
from typing import Any

from ditscope.core.settings import setting


@dataclass(frozen=True)
class Analysis:
    """A module of your own: `analyse` makes a table of what stages left, `figure`, if there is one, draws it."""

    module: str = setting(help="Dotted path of the module, as my_package.my_analysis")
    stages: list[str] = setting(help="Stages whose files it is given", filled=True)
    settings: dict[str, Any] = setting({}, "What `analyse` takes beside the files, by keyword")


@dataclass(frozen=True)
class Analyse:
    """Analyses of your own, each of which leaves one table."""

    analyses: dict[str, Analysis] = setting({}, "Analyses by name", config_only=True)
