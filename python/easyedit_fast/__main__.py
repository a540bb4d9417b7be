"""``python -m easyedit_fast``: the command line, for launchers that take a module."""

from easyedit_fast.cli import main

if __name__ == "__main__":
    main()
