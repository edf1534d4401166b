"""The command line: parses, loads the config, calls a stage, turns its outcome into text and an exit code.

Exit codes: 0 all done, 1 some slides failed (see failures.csv), 2 usage or config error, 130 interrupted (run again to go on).
Nothing heavy is imported before a command runs, and no other command, so that what is asked is answered at once.
"""

from __future__ import annotations

from wsimil.cli.app import app


def main() -> None:
    """Entry point of `wsimil`."""
    app()
