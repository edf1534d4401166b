"""Commands that show answers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from wsimil.cli.answers import origin_of
from wsimil.cli.app import ANSWERS, exits

commands = typer.Typer(rich_markup_mode="rich")

Predictions = Annotated[Path, typer.Argument(help="Folder that `wsimil predict` wrote.")]
Slides = Annotated[
    Path | None, typer.Option(help="The slides: a folder, or a CSV manifest (path, slide_id, mpp).", show_default=False)
]
Features = Annotated[
    Path | None,
    typer.Option(help="Folder that was predicted: with --run, any what-if.", show_default=False),
]
Run = Annotated[Path | None, typer.Option(help="Run that answered.", show_default=False)]
Labels = Annotated[Path | None, typer.Option("--cohort", help="CSV with labels.", show_default=False)]


@commands.command(rich_help_panel=ANSWERS)
def view(
    predictions: Predictions,
    slides: Slides = None,
    features: Features = None,
    run: Run = None,
    cohort: Labels = None,
    notes: Annotated[
        Path | None, typer.Option(help="Folder for what you note.", show_default="notes in PREDICTIONS")
    ] = None,
    origin: Annotated[
        str, typer.Option(help="Where QuPath coordinates of notes count from: bounds (QuPath's way) or level0.")
    ] = "bounds",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port of 127.0.0.1; 0 takes a free one.")] = 0,
    browser: Annotated[bool, typer.Option(help="Open the page in a browser.")] = True,
) -> None:
    """Look at slides, scores and answers in a browser on this machine, and note what you see. Ctrl-C ends it."""
    with exits():
        from wsimil.stages import text
        from wsimil.stages import view as stage

        options = stage.ViewOptions(
            slides=slides,
            features=features,
            run=run,
            cohort_csv=cohort,
            notes=notes,
            origin=origin_of(origin),
            port=port,
        )
        server = stage.open_viewer(predictions, options=options, report=text.warn)
        text.say(
            f"{len(server.desk.study.cohort.cases)} slides are served to this machine alone, to whoever has this address:",
            f"  {server.url}",
            "From another machine, first:",
            f"  {stage.tunnel(server)}",
            "Ctrl-C ends it.",
        )
    # Outside, for there Ctrl-C is an interruption, and here it is the end.
    stage.serve(server, browser=browser)
