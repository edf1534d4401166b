"""Commands by the module that declares them; it is imported when one of its commands is named, or all are listed."""

from __future__ import annotations

from importlib import import_module
from typing import Final, cast

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_group

_MODULES: Final = {
    "features": ("extract", "inspect", "convert", "pack"),
    "models": ("train", "crossval", "search", "ensemble", "import-checkpoint", "splits"),
    "answers": ("predict", "evaluate", "compare", "explain-check"),
    "viewing": ("view",),
    "exporting": ("export",),
    "cluster": ("plan", "worker", "status", "retry"),
    "about": ("demo", "doctor", "config", "list"),
}
"""In the order of help."""
HOMES: Final = {command: f"wsimil.cli.{module}" for module, names in _MODULES.items() for command in names}


class OnDemand(TyperGroup):
    """The commands of `HOMES`, of which a run needs one: thirty of them take longer to build than a status to read."""

    # typer keeps its own copy of click's Context, and typer.Context is one of them.
    def list_commands(self, ctx: typer.Context) -> list[str]:  # type: ignore[override]
        """All, in the order of help."""
        for name in HOMES:
            self._load(name)
        return list(HOMES)

    def get_command(self, ctx: typer.Context, cmd_name: str) -> TyperCommand | TyperGroup | None:  # type: ignore[override]
        """The command of that name, or None."""
        if cmd_name in HOMES:
            self._load(cmd_name)
        elif ctx.token_normalize_func is None or ctx.token_normalize_func(cmd_name) not in HOMES:
            self.list_commands(ctx)  # among which the group looks for what may have been meant
        return cast("TyperCommand | TyperGroup | None", self.commands.get(cmd_name))

    def _load(self, name: str) -> None:
        if name not in self.commands:
            self.commands.update(get_group(import_module(HOMES[name]).commands).commands)
