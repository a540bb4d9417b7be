"""All commands."""

from __future__ import annotations

from typing import Annotated

import typer

from easyedit_fast.cli import (
    apply,
    demo,
    doctor,
    edit,
    evaluate,
    export,
    memory,
    profile,
    serve,
    stats,
    sweep,
    train,
)
from easyedit_fast.cli.output import print_line, show_warnings_as_lines
from easyedit_fast.version import __version__

app = typer.Typer(
    name="easyedit-fast",
    help="Edit facts inside causal language models: one edit or thousands at a time.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _show_version(wanted: bool) -> None:
    if wanted:
        print_line(f"easyedit-fast {__version__}")
        raise typer.Exit


@app.callback()
def _prepare(
    version: Annotated[  # noqa: ARG001  the callback of the option does all
        bool,
        typer.Option("--version", help="Show the version and exit.", callback=_show_version),
    ] = False,
) -> None:
    show_warnings_as_lines()


app.command("edit")(edit.edit)
app.command("apply")(apply.apply)
app.command("evaluate")(evaluate.evaluate)
app.command("export")(export.export)
app.command("stats")(stats.stats)
app.command("sweep")(sweep.sweep)
app.command("train")(train.train)
app.command("profile")(profile.profile)
app.command("serve")(serve.serve)
app.add_typer(memory.app, name="memory")
app.command("demo")(demo.demo)
app.command("doctor")(doctor.doctor)
