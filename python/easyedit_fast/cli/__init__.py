"""The command line: ``easyedit-fast COMMAND``; every command has ``--help`` with an example."""

from __future__ import annotations

import sys
from typing import Any

_BAD_INPUT = 2
_INTERRUPTED = 130  # 128 + SIGINT, as shells have it


def main() -> None:
    """Entry point: runs the command line, and turns errors into one line and exit code 2.

    That goes for wrong usage, for our own errors and for the system's (no permission, disk full).
    Ctrl-C ends it with 130 and says nothing.
    """
    import typer

    from easyedit_fast.errors import EasyEditFastError

    # Newer releases of typer bring a click of their own; this is UsageError in either.
    usage_error: Any = typer.BadParameter.__mro__[1]
    try:
        from easyedit_fast.cli.app import app

        sys.exit(app(prog_name="easyedit-fast", standalone_mode=False) or 0)
    except usage_error as error:
        sys.exit(_refuse_usage(error))
    except typer.Abort:
        sys.exit(_INTERRUPTED)
    except (EasyEditFastError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(_BAD_INPUT)
    except KeyboardInterrupt:
        sys.exit(_INTERRUPTED)


def _refuse_usage(error: Any) -> int:
    """Says what is wrong with the arguments, and gives the exit code."""
    if type(error).__name__ == "NoArgsIsHelpError":
        print(error.format_message(), file=sys.stderr)
        return _BAD_INPUT
    message = " ".join(error.format_message().split()).rstrip(".")
    command = error.ctx.command_path if error.ctx is not None else "easyedit-fast"
    print(f"error: {message}; see '{command} --help'", file=sys.stderr)
    return _BAD_INPUT
