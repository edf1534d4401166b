"""The command line: parses, loads the config, calls a stage, turns its outcome into text and an exit code.

Exit codes: 0 all done, 1 some slides failed (see failures.csv), 2 usage or config error, 130 interrupted (run again to go on).
Nothing heavy is imported before a command runs, so that help answers at once.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from wsimil import __version__
from wsimil.errors import SlideError, WsimilError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from wsimil.stages.extract import ExtractPlan, ExtractSummary
    from wsimil.stages.inspect import SlideReport

app = typer.Typer(
    name="wsimil",
    help="Weakly supervised learning on whole-slide images: [b]extract[/b], [b]train[/b], [b]predict[/b]. For research use only.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={
        "help_option_names": ["-h", "--help"],
        "token_normalize_func": lambda name: name.replace("_", "-"),
    },
)

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
    float | None, typer.Option(min=0, help="µm per level-0 pixel, for slides that do not say.", show_default=False)
]
BatchSize = Annotated[int | None, typer.Option(min=1, help="Tiles the encoder gets at once.", show_default="32")]
DryRun = Annotated[bool, typer.Option("--dry-run", "-n", help="Say what would be done; write nothing.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Show results only, no progress.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


def main() -> None:
    """Entry point of `wsimil`."""
    app()


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


@app.command()
def extract(
    slides: Annotated[
        Path, typer.Argument(help="A slide, a folder of slides, or a CSV manifest (path, slide_id, mpp, mask).")
    ],
    out: Out,
    encoder: Annotated[
        str | None,
        typer.Option("--encoder", "-e", help="See `wsimil list encoders`.", show_default="efficientnet_lite0"),
    ] = None,
    encoder_weights: Weights = None,
    tile_um: Annotated[
        float | None, typer.Option(help="Side of a tile in µm.", show_default="the encoder's, or 128")
    ] = None,
    tile_px: Annotated[
        int | None, typer.Option(help="Side of a tile in px as the encoder sees it.", show_default="the encoder's")
    ] = None,
    mpp: Annotated[
        float | None, typer.Option(help="µm per px as the encoder sees it.", show_default="the encoder's")
    ] = None,
    overlap: Annotated[
        float | None, typer.Option(help="Share of a tile's side that neighbors share.", show_default="0")
    ] = None,
    min_tissue: Annotated[
        float | None, typer.Option(help="Smallest share of tissue that keeps a tile.", show_default="0.25")
    ] = None,
    mpp_override: MppOverride = None,
    masks: Annotated[
        Path | None, typer.Option(help="Folder of <slide_id>.geojson to use as tissue.", show_default=False)
    ] = None,
    device: Device = None,
    precision: Annotated[str | None, typer.Option(help="auto, fp32, fp16 or bf16.", show_default="auto")] = None,
    dtype: Annotated[
        str | None, typer.Option(help="How features are stored: float16 or float32.", show_default="float16")
    ] = None,
    store: Annotated[str | None, typer.Option(help="hdf5 or zarr.", show_default="hdf5")] = None,
    batch_size: BatchSize = None,
    readers: Annotated[int | None, typer.Option(min=1, help="Threads that read tiles.", show_default="2")] = None,
    shard: Annotated[str | None, typer.Option(help="Do part i of n, for array jobs: 3/8.", show_default=False)] = None,
    config: ConfigFile = None,
    sets: Sets = None,
    dry_run: DryRun = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Turn slides into features, one file a slide. A bad slide is recorded and the run goes on; a rerun does what is missing."""
    with _exits():
        from wsimil.config import load_config
        from wsimil.extraction.config import ExtractConfig
        from wsimil.extraction.sources import Shard, list_sources

        given = {
            "encoder": encoder, "encoder_weights": _text(encoder_weights), "tile.tile_um": tile_um, "tile.size_px": tile_px,
            "tile.mpp": mpp, "tile.overlap": overlap, "tile.min_tissue": min_tissue, "mpp_override": mpp_override,
            "masks": _text(masks), "device": device, "precision": precision, "dtype": dtype, "store": store,
            "batch_size": batch_size, "readers": readers,
        }  # fmt: skip
        resolved = load_config(ExtractConfig, config, overrides=sets or (), given=given)
        part = Shard.parse(shard) if shard else None
        sources = list_sources(slides)
        from wsimil.stages import extract as stage
        from wsimil.stages.progress import reporter

        with reporter(_stderr(), quiet=quiet) as watch:
            if dry_run:
                planned = stage.plan(resolved, sources, out, shard=part, reporter=watch)
            else:
                summary = stage.extract(resolved, sources, out, shard=part, reporter=watch)
        if dry_run:
            _show_plan(planned, out, as_json=as_json)
            raise typer.Exit(1 if any(s.status == "failed" for s in planned.slides) else 0)
        _show_summary(summary, out, as_json=as_json)
        raise typer.Exit(1 if summary.failures else 0)


@app.command()
def inspect(
    slide: Annotated[Path, typer.Argument(help="A slide file.")],
    encoder: Annotated[str, typer.Option("--encoder", "-e", help="Whose tiles to lay.")] = "efficientnet_lite0",
    tile_um: Annotated[
        float | None, typer.Option(help="Side of a tile in µm.", show_default="the encoder's, or 128")
    ] = None,
    mpp: Annotated[
        float | None, typer.Option(help="µm per px as the encoder sees it.", show_default="the encoder's")
    ] = None,
    mpp_override: MppOverride = None,
    as_json: AsJson = False,
) -> None:
    """Show what a slide is, where its µm per pixel comes from, and how it would be tiled."""
    with _exits():
        from wsimil.encoders import card
        from wsimil.extraction.config import TileConfig
        from wsimil.stages.inspect import inspect as look

        wanted = card(encoder)
        report = look(
            slide,
            tiles=TileConfig(tile_um=tile_um, mpp=mpp),
            input_px=wanted.input_px,
            trained_mpp=wanted.mpp,
            mpp_override=mpp_override,
        )
        _show_slide(report, as_json=as_json)
        raise typer.Exit(1 if report.refusal else 0)


@app.command()
def doctor(
    out: Annotated[Path | None, typer.Option("--out", "-o", help="A folder that is going to be written to.")] = None,
    as_json: AsJson = False,
) -> None:
    """Check that this machine is ready; every line says PASS, WARN or FAIL, and what to do."""
    with _exits():
        from wsimil.stages.doctor import diagnose

        checks = diagnose(out)
        if as_json:
            _print_json([{"name": c.name, "verdict": c.verdict, "found": c.found, "fix": c.fix} for c in checks])
        else:
            table = _table("", "check", "found, and what to do")
            colors = {"PASS": "green", "WARN": "yellow", "FAIL": "red"}
            for check in checks:
                fix = f"\n→ {check.fix}" if check.fix else ""
                table.add_row(f"[{colors[check.verdict]}]{check.verdict}[/]", check.name, _plain(check.found + fix))
            _stdout().print(table)
        raise typer.Exit(1 if any(c.verdict == "FAIL" for c in checks) else 0)


listing = typer.Typer(no_args_is_help=True, help="List what there is: encoders or methods.")
app.add_typer(listing, name="list")


@listing.command("encoders")
def list_encoders(as_json: AsJson = False) -> None:
    """Encoders with their ids, sizes and licenses."""
    with _exits():
        from wsimil.encoders import list_cards

        cards = list_cards()
        if as_json:
            _print_json([{"name": c.name, "dim": c.dim, "input_px": c.input_px, "mpp": list(c.mpp), "pooling": c.pooling, "license": c.license, "gated": c.gated, "paper": c.paper} for c in cards])  # fmt: skip
            return
        table = _table("id", "dim", "px", "µm/px", "pooling", "license")
        for c in cards:
            spacing = ", ".join(f"{mpp:g}" for mpp in c.mpp) or "any"
            table.add_row(
                c.name, str(c.dim), str(c.input_px), spacing, c.pooling, c.license + (" (gated)" if c.gated else "")
            )
        _stdout().print(table)
        _stdout().print(
            "Any other timm model: timm:<name>, for example timm:resnet18.a1_in1k", markup=False, highlight=False
        )


@listing.command("methods")
def list_methods(as_json: AsJson = False) -> None:
    """MIL methods, with their hyperparameters."""
    with _exits():
        from wsimil.mil import registry

        described = {name: registry.config_class(name) for name in registry.names()}
        if as_json:
            _print_json({name: config.model_json_schema() for name, config in described.items()})
            return
        table = _table("id", "hyperparameters (--set method.<name>=...)")
        for name, config in described.items():
            table.add_row(name, _plain(", ".join(f"{k}={v!r}" for k, v in config().model_dump(mode="json").items())))
        _stdout().print(table)


@contextmanager
def _exits() -> Iterator[None]:
    """Turn errors into one message and an exit code."""
    try:
        yield
    except WsimilError as error:
        _stderr().print(f"wsimil: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(1 if isinstance(error, SlideError) else 2) from None
    except KeyboardInterrupt:
        _stderr().print("wsimil: interrupted; the same command goes on from here", markup=False)
        raise typer.Exit(130) from None
    except BrokenPipeError:
        sys.stderr.close()  # whoever read our output has gone; there is nobody to tell
        raise typer.Exit(0) from None


def _show_summary(summary: ExtractSummary, out: Path, *, as_json: bool) -> None:
    counts = {status: summary.count(status) for status in ("done", "skipped", "failed")}  # type: ignore[arg-type]  # the three of Status
    rate = summary.tiles / summary.seconds if summary.seconds else 0.0
    if as_json:
        facts = {
            **counts, "tiles": summary.tiles, "seconds": round(summary.seconds, 2), "tiles_per_s": round(rate, 1),
            "wait_share": round(summary.wait_share, 3), "stages": summary.stages.rounded(),
            "peak_rss_mb": round(summary.peak_rss_mb), "failures": {f.slide_id: f.reason for f in summary.failures},
        }  # fmt: skip
        _print_json(facts)
        return
    console = _stdout()
    line = f"{counts['done']} slides done, {counts['skipped']} complete already, {counts['failed']} failed"
    console.print(f"{line} -> {out}", markup=False, highlight=False, soft_wrap=True)
    if counts["done"]:
        stages = ", ".join(f"{name} {value:.1f}" for name, value in summary.stages.rounded().items())
        facts_line = f"{summary.tiles} tiles in {summary.seconds:.1f} s ({rate:.0f}/s); seconds by stage: {stages}"
        console.print(facts_line, markup=False, highlight=False, soft_wrap=True)
        console.print(
            f"The encoder waited for tiles {summary.wait_share:.0%} of its time; peak memory {summary.peak_rss_mb:.0f} MB",
            markup=False, highlight=False, soft_wrap=True,
        )  # fmt: skip
    if summary.failures:
        table = _table("failed slide", "reason")
        for failure in summary.failures:
            table.add_row(_plain(failure.slide_id), _plain(failure.reason))
        console.print(table)
        console.print(
            f"Also in {out}/failures*.csv; mend and run the same command again.", markup=False, soft_wrap=True
        )


def _show_plan(planned: ExtractPlan, out: Path, *, as_json: bool) -> None:
    slides = planned.slides
    tiles, size, seconds = (sum(getattr(s, name) for s in slides) for name in ("tiles", "bytes_", "seconds"))
    if as_json:
        rows = [{"slide_id": s.slide_id, "status": s.status, "tiles": s.tiles, "mpp": s.mpp, "bytes": s.bytes_, "seconds": round(s.seconds, 1), "reason": s.reason} for s in slides]  # fmt: skip
        _print_json({"slides": rows, "tiles": tiles, "bytes": size, "seconds": round(seconds, 1)})
        return
    table = _table("slide", "status", "µm/px", "tiles", "MB", "s")
    for s in slides:
        if s.status == "failed":
            table.add_row(_plain(s.slide_id), _plain(f"failed: {s.reason}"))
        else:
            known = s.status == "to do"
            table.add_row(_plain(s.slide_id), s.status, *((f"{s.mpp:.4g}", str(s.tiles), f"{s.bytes_ / 1e6:.1f}", f"{s.seconds:.1f}") if known else ()))  # fmt: skip
    console = _stdout()
    console.print(table)
    spec = planned.spec
    todo = sum(s.status == "to do" for s in slides)
    console.print(
        f"{todo} of {len(slides)} slides to do: {tiles} tiles of {spec.size_um:g} µm ({spec.size_px} px at {spec.mpp:.4g} µm/px),"
        f" {size / 1e6:.1f} MB in {out}, about {seconds:.0f} s"
        f" ({planned.tiles_per_s:.0f} tiles/s, measured on {planned.measured_tiles} tiles). Nothing was written.",
        markup=False, highlight=False, soft_wrap=True,
    )  # fmt: skip


def _show_slide(report: SlideReport, *, as_json: bool) -> None:
    info, grid = report.info, report.grid
    facts: dict[str, str] = {
        "slide": info.slide_id,
        "vendor": info.vendor,
        "size": f"{info.size0_px[0]} × {info.size0_px[1]} px, {info.size_um[0] / 1000:.2f} × {info.size_um[1] / 1000:.2f} mm",
        "µm per pixel": f"{info.mpp:.6g}, from {info.mpp_detail}",
        "levels": ", ".join(f"1:{d:.5g}" for d in info.level_downsamples),
        "scanned bounds": "x {}, y {}, {} × {} px".format(*info.bounds0_px),
        "tissue": f"{report.tissue.area_mm2:.3g} mm² ({report.tissue.method}, {report.tissue.mpp:.3g} µm/px)",
        "tiles": report.refusal,
        "digest": info.digest,
    }
    if grid is not None:
        facts["tiles"] = (
            f"{len(grid)} of {grid.spec.size_um:g} µm: {grid.read_px} px of level {grid.read_level} become {grid.spec.size_px} px;"
            f" {grid.effective_mpp:.5g} µm/px for {grid.spec.mpp:.5g} asked"
        )
    if as_json:
        _print_json(facts)
        return
    table = _table("", "", header=False)
    for name, value in facts.items():
        table.add_row(name, _plain(value))
    _stdout().print(table)


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)


def _plain(text: str) -> str:
    from rich.markup import escape

    return escape(text)


def _print_json(value: object) -> None:
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))


def _table(*columns: str, header: bool = True) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, show_header=header, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _stdout() -> Console:
    from rich.console import Console

    return Console()


def _stderr() -> Console:
    from rich.console import Console

    return Console(stderr=True)
