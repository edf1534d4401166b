"""Commands that show answers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from wsimil.cli.app import ANSWERS, AsJson, Quiet, app, exits

Predictions = Annotated[Path, typer.Argument(help="Folder that `wsimil predict` wrote.")]
Slides = Annotated[
    Path | None, typer.Option(help="The slides: a folder, or a CSV manifest (path, slide_id, mpp).", show_default=False)
]
Features = Annotated[
    Path | None,
    typer.Option(help="Folder that was predicted: shows tissue; with --run, any what-if.", show_default=False),
]
Run = Annotated[Path | None, typer.Option(help="Run that answered.", show_default=False)]
Labels = Annotated[Path | None, typer.Option("--cohort", help="CSV with labels.", show_default=False)]


@app.command(rich_help_panel=ANSWERS)
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
        from wsimil.errors import ConfigError
        from wsimil.stages import text
        from wsimil.stages import view as stage

        origins: dict[str, Literal["bounds", "level0"]] = {"bounds": "bounds", "level0": "level0"}
        if origin not in origins:
            raise ConfigError(f"--origin {origin!r}: wanted bounds or level0")
        options = stage.ViewOptions(
            slides=slides, features=features, run=run, cohort_csv=cohort, notes=notes, origin=origins[origin], port=port
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


@app.command("export-html", rich_help_panel=ANSWERS)
def export_html(
    predictions: Predictions,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder, or a file with --single-file.", show_default=False)],
    slides: Slides = None,
    features: Features = None,
    run: Run = None,
    cohort: Labels = None,
    single_file: Annotated[bool, typer.Option("--single-file", help="One file that holds everything.")] = False,
    top: Annotated[int, typer.Option(min=0, help="Tiles of each end of a score to show in full resolution.")] = 8,
    only: Annotated[list[str] | None, typer.Option(help="A slide id. Repeatable.", show_default="all slides")] = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Write the viewer as a folder or one file that opens without wsimil and asks no network."""
    with exits():
        from wsimil.stages import export_html as stage
        from wsimil.stages import text
        from wsimil.stages.progress import reporter

        options = stage.HtmlOptions(
            slides=slides, features=features, run=run, cohort_csv=cohort, single_file=single_file, top=top,
            only=tuple(only or ()),
        )  # fmt: skip
        with reporter(text.stderr(), quiet=quiet) as watch:
            summary = stage.export_html(predictions, out, options=options, reporter=watch)
        text.show_html(summary, as_json=as_json)
