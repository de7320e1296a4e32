"""Which pipelines of the installed diffusers are driven: `ditscope pipelines`, which is docs/pipelines.md."""

from collections.abc import Mapping

from ditscope.models.hardware import installed

HEAD = """# Pipelines of diffusers

<!-- Made by `make docs`; do not edit. -->

What `family: dit` drives, and why it does not drive the others, of diffusers {version}. Found by reading each class
(`scripts/ditscope/models/pipelines.py`): a pipeline is driven where it has one transformer that its `__call__` calls, a
scheduler with noise levels whose `step` it calls, `encode_prompt`, and nothing but a text that it must be given. The
tests drive tiny random models of more than twenty families for real (`tests/any_pipelines.py`); of the others only the
code was read. `ditscope model NAME` says it of one model, with its blocks and streams.
"""


def pipelines() -> None:
    """Print which pipelines of the installed diffusers are driven, and why each of the others is not, in Markdown."""
    from ditscope.models.pipelines import verdicts

    print(page(verdicts(), installed("diffusers")), end="")


def page(verdicts: Mapping[str, str], version: str) -> str:
    """The page of all pipelines: those that are driven, and the others by reason, the commonest first."""
    driven = [name for name, reason in verdicts.items() if not reason]
    by_reason: dict[str, list[str]] = {}
    for name, reason in verdicts.items():
        if reason:
            by_reason.setdefault(reason, []).append(name)
    rows = [
        f"| {reason} | {len(names)} | {listed(names)} |"
        for reason, names in sorted(by_reason.items(), key=lambda pair: (-len(pair[1]), pair[0]))
    ]
    return "\n".join(
        [
            HEAD.format(version=version),
            f"## Driven: {len(driven)}\n",
            f"{listed(driven)}\n",
            f"## Not driven: {len(verdicts) - len(driven)}\n",
            "| reason | | pipelines |",
            "|---|---|---|",
            *rows,
            "",
        ]
    )


def listed(names: list[str]) -> str:
    """Names of pipelines in a row, less the ending that they share."""
    return ", ".join(name.removesuffix("Pipeline") for name in names)
