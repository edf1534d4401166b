"""The command line itself: options that commands share, and how errors become a message and an exit code."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from wsimil import __version__
from wsimil.cli.on_demand import OnDemand
from wsimil.errors import SlideError, WsimilError

app = typer.Typer(
    name="wsimil",
    cls=OnDemand,
    help="Weakly supervised learning on whole-slide images: [b]extract[/b], [b]train[/b], [b]predict[/b]. For research use only.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={
        "help_option_names": ["-h", "--help"],
        "token_normalize_func": lambda name: name.replace("_", "-"),
    },
)

FEATURES, MODELS, ANSWERS, CLUSTER, ABOUT = "Slides and features", "Models", "Answers", "Many machines", "About"

# Options that several commands share, so that they read the same everywhere.
Out = Annotated[Path, typer.Option("--out", "-o", help="Output folder.", show_default=False)]
ConfigFile = Annotated[
    Path | None, typer.Option("--config", "-c", help="YAML config; options win over it.", show_default=False)
]
Sets = Annotated[
    list[str] | None, typer.Option("--set", help="Any config key: --set fit.lr=1e-4. Repeatable.", show_default=False)
]
Device = Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:<n>.", show_default="auto")]
Weights = Annotated[Path | None, typer.Option(help="Local weights file of the encoder.", show_default=False)]
MppOverride = Annotated[
    float | None,
    typer.Option(help="µm per level-0 pixel of every slide, whatever its metadata say.", show_default=False),
]
BatchSize = Annotated[int | None, typer.Option(min=1, help="Tiles the encoder gets at once.", show_default="32")]
DryRun = Annotated[bool, typer.Option("--dry-run", "-n", help="Say what would be done; write nothing.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Show results only, no progress.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"wsimil {__version__}")
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@contextmanager
def exits() -> Iterator[None]:
    """Turn errors into one message and an exit code."""
    from wsimil.stages.interrupt import interrupt

    try:
        with interrupt.remembered():
            yield
    except WsimilError as error:
        typer.secho(f"wsimil: {error}", fg="red", err=True)
        raise typer.Exit(1 if isinstance(error, SlideError) else 2) from None
    except KeyboardInterrupt:
        typer.secho("wsimil: interrupted; the same command goes on from here", err=True)
        raise typer.Exit(130) from None
    except BrokenPipeError:
        sys.stderr.close()  # whoever read our output has gone; there is nobody to tell
        raise typer.Exit(0) from None


def path_text(path: Path | None) -> str | None:
    """A path as a config holds it."""
    return None if path is None else str(path)
