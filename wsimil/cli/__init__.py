"""The command line: parses, loads the config, calls a stage, turns its outcome into text and an exit code.

Exit codes: 0 all done, 1 some slides failed (see failures.csv), 2 usage or config error, 130 interrupted (run again to go on).
Nothing heavy is imported before a command runs, so that help answers at once.
"""

from __future__ import annotations

from wsimil.cli.app import app

# Each adds its commands; help shows them in this order.
# isort: off
import wsimil.cli.features
import wsimil.cli.models
import wsimil.cli.answers
import wsimil.cli.viewing
import wsimil.cli.exporting
import wsimil.cli.cluster
import wsimil.cli.about  # noqa: F401  # and those before it
# isort: on


def main() -> None:
    """Entry point of `wsimil`."""
    app()
