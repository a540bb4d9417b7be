"""All commands."""

from __future__ import annotations

import typer

from easyedit_fast.cli import apply, demo, doctor, edit, export, stats
from easyedit_fast.cli.output import show_warnings_as_lines

app = typer.Typer(
    name="easyedit-fast",
    help="Edit facts inside causal language models: one edit or thousands at a time.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.callback()
def _prepare() -> None:
    show_warnings_as_lines()


app.command("edit")(edit.edit)
app.command("apply")(apply.apply)
app.command("export")(export.export)
app.command("stats")(stats.stats)
app.command("demo")(demo.demo)
app.command("doctor")(doctor.doctor)
