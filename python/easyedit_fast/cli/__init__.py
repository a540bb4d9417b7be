"""The command line: ``easyedit-fast COMMAND``; every command has ``--help`` with an example."""

from __future__ import annotations

import sys


def main() -> None:
    """Entry point: runs the command line, and turns our errors into one line and exit code 2."""
    from easyedit_fast.cli.app import app
    from easyedit_fast.errors import EasyEditFastError

    try:
        app()
    except EasyEditFastError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
