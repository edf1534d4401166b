"""Commands that give scores of tiles out in other forms: `wsimil export` for viewers of pathologists, `wsimil export html`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from typer.core import TyperGroup

from wsimil.cli.answers import origin_of, range_of, split_names
from wsimil.cli.app import ANSWERS, AsJson, Quiet, exits
from wsimil.cli.viewing import Features, Labels, Predictions, Run, Slides

commands = typer.Typer(rich_markup_mode="rich")

_MAPS = "maps"


class _MapsUnlessNamed(TyperGroup):
    """`wsimil export PREDICTIONS --to ...` is `wsimil export maps PREDICTIONS --to ...`."""

    # typer keeps its own copy of click's Context, and typer.Context is one of them.
    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:  # type: ignore[override]
        if args and args[0] not in (*self.commands, *ctx.help_option_names):
            args = [_MAPS, *args]
        return super().parse_args(ctx, args)


export_app = typer.Typer(cls=_MapsUnlessNamed, no_args_is_help=True, rich_markup_mode="rich")
commands.add_typer(
    export_app,
    name="export",
    rich_help_panel=ANSWERS,
    help="Give out scores of tiles: `export PREDICTIONS --to qupath,...` for other viewers, `export html` as a page.",
)


@export_app.command(_MAPS)
def export_maps(
    predictions: Predictions,
    to: Annotated[
        str, typer.Option(help="Forms, with commas: qupath, png, ome-tiff, dicom, dsa, csv.", show_default=False)
    ],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Output folder.", show_default="PREDICTIONS/export")
    ] = None,
    features: Annotated[
        Path | None, typer.Option(help="Folder that was predicted: thumbnails, and tissue.", show_default=False)
    ] = None,
    slides: Annotated[
        Path | None,
        typer.Option(help="For dicom: the slide, a folder of slides, a manifest.", show_default=False),
    ] = None,
    score: Annotated[
        str | None,
        typer.Option(help="One score alone, such as attention.", show_default="all, or what the answer rests on"),
    ] = None,
    span: Annotated[
        str,
        typer.Option(
            "--range", help="What colors of png and dsa span: cohort (one range for all slides), slide or rank."
        ),
    ] = "cohort",
    origin: Annotated[
        str, typer.Option(help="Where QuPath and OME-TIFF count from: bounds (QuPath's way) or level0.")
    ] = "bounds",
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Write the scores of tiles for the viewers that pathologists use. One slide that fails does not stop the others."""
    with exits():
        from datetime import UTC, datetime

        from wsimil.stages import export as stage
        from wsimil.stages import text, text_export
        from wsimil.stages.progress import reporter

        options = stage.ExportOptions(
            formats=split_names(to) or (), score=score, range=range_of(span), origin=origin_of(origin), features=features,
            slides=slides,
        )  # fmt: skip
        out = out or predictions / stage.FOLDER
        with reporter(text.stderr(), quiet=quiet) as watch:
            summary = stage.export(predictions, out, options=options, now=datetime.now(UTC), reporter=watch)
        text_export.show_export(summary, out, as_json=as_json)
        raise typer.Exit(1 if summary.failures else 0)


@export_app.command("html")
def export_html(
    predictions: Predictions,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder, or a file with --single-file.", show_default=False)],
    slides: Slides = None,
    features: Features = None,
    run: Run = None,
    cohort: Labels = None,
    single_file: Annotated[bool, typer.Option("--single-file", help="One file that holds everything.")] = False,
    top: Annotated[int, typer.Option(min=0, help="Tiles of each end of a score to show in full resolution.")] = 9,
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
