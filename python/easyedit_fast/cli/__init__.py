"""The command line: ``easyedit-fast COMMAND``; every command has ``--help`` with an example."""

from __future__ import annotations

import sys

_BAD_INPUT = 2
_INTERRUPTED = 130  # 128 + SIGINT, as shells have it


def main() -> None:
    """Entry point: runs the command line, and turns errors into one line and exit code 2.

    That goes for our own errors and for the system's (no permission, disk full). Ctrl-C ends it
    with 130 and says nothing.
    """
    from easyedit_fast.errors import EasyEditFastError

    try:
        from easyedit_fast.cli.app import app

        app()
    except (EasyEditFastError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(_BAD_INPUT)
    except KeyboardInterrupt:
        sys.exit(_INTERRUPTED)
