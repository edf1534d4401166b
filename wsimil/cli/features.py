"""Commands that make features of slides, and hand them on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from wsimil.cli.app import (
    FEATURES,
    AsJson,
    BatchSize,
    ConfigFile,
    Device,
    DryRun,
    MppOverride,
    Out,
    Quiet,
    Sets,
    Weights,
    exits,
    path_text,
)

commands = typer.Typer(rich_markup_mode="rich")


@commands.command(rich_help_panel=FEATURES)
def extract(
    slides: Annotated[
        Path, typer.Argument(help="A slide, a folder of slides, or a CSV manifest (path, slide_id, mpp, mask).")
    ],
    out: Out,
    encoder: Annotated[
        str | None,
        typer.Option("--encoder", "-e", help="See `wsimil list encoders`.", show_default="efficientnet_lite0_trunc"),
    ] = None,
    encoder_weights: Weights = None,
    tile_um: Annotated[
        float | None, typer.Option(help="Side of a tile in µm.", show_default="the encoder's, or 128")
    ] = None,
    tile_px: Annotated[
        int | None, typer.Option(help="Side of a tile in px as the encoder sees it.", show_default="the encoder's")
    ] = None,
    mpp: Annotated[
        float | None, typer.Option(help="µm per px as the encoder sees it.", show_default="tile-um / tile-px")
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
    slide_reader: Annotated[
        str | None, typer.Option(help="Who reads pixels: auto, tiff or openslide.", show_default="auto")
    ] = None,
    shard: Annotated[str | None, typer.Option(help="Do part i of n, for array jobs: 3/8.", show_default=False)] = None,
    profile: Annotated[
        bool, typer.Option("--profile", help="Write profile.json, a trace of all threads for chrome://tracing.")
    ] = False,
    config: ConfigFile = None,
    sets: Sets = None,
    dry_run: DryRun = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Turn slides into features, one file a slide. A bad slide is recorded and the run goes on; a rerun does what is missing."""
    with exits():
        from wsimil.config import load_config
        from wsimil.extraction.config import ExtractConfig
        from wsimil.extraction.sources import Shard, list_sources

        given = {
            "encoder": encoder, "encoder_weights": path_text(encoder_weights), "tile.tile_um": tile_um, "tile.size_px": tile_px,
            "tile.mpp": mpp, "tile.overlap": overlap, "tile.min_tissue": min_tissue, "mpp_override": mpp_override,
            "masks": path_text(masks), "device": device, "precision": precision, "dtype": dtype, "store": store,
            "batch_size": batch_size, "readers": readers, "slide_reader": slide_reader,
        }  # fmt: skip
        resolved = load_config(ExtractConfig, config, overrides=sets or (), given=given)
        part = None if shard is None else Shard.parse(shard)
        sources = list_sources(slides)
        from wsimil.stages import extract as stage
        from wsimil.stages import text
        from wsimil.stages.progress import reporter

        with reporter(text.stderr(), quiet=quiet) as watch:
            if dry_run:
                from wsimil.stages.plan_extraction import plan

                planned = plan(resolved, sources, out, shard=part, reporter=watch)
            else:
                summary = stage.extract(resolved, sources, out, shard=part, profile=profile, reporter=watch)
        if dry_run:
            text.show_plan(planned, out, as_json=as_json)
            raise typer.Exit(1 if any(s.status == "failed" for s in planned.slides) else 0)
        text.show_summary(summary, out, as_json=as_json)
        raise typer.Exit(1 if summary.failures else 0)


@commands.command(rich_help_panel=FEATURES)
def inspect(
    slide: Annotated[Path, typer.Argument(help="A slide file.")],
    encoder: Annotated[str, typer.Option("--encoder", "-e", help="Whose tiles to lay.")] = "efficientnet_lite0_trunc",
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
    with exits():
        from wsimil.config import load_config
        from wsimil.encoders import card
        from wsimil.extraction.config import TileConfig
        from wsimil.stages import text
        from wsimil.stages.inspect import inspect as look

        wanted = card(encoder)
        report = look(
            slide,
            tiles=load_config(TileConfig, given={"tile_um": tile_um, "mpp": mpp}),
            input_px=wanted.input_px,
            trained_mpp=wanted.mpp,
            mpp_override=mpp_override,
        )
        text.show_slide(report, as_json=as_json)
        raise typer.Exit(1 if report.refusal else 0)


@commands.command(rich_help_panel=FEATURES)
def convert(
    source: Annotated[Path, typer.Argument(help="Feature folder of wsimil or of another tool.")],
    out: Annotated[Path, typer.Argument(help="Output folder.")],
    to: Annotated[str, typer.Option("--to", help="wsimil, clam, trident, stamp or spatialdata.")] = "wsimil",
    layout: Annotated[
        str | None,
        typer.Option(
            "--from",
            help="wsimil, clam, trident, stamp, atlaspatch, slide2vec or spatialdata.",
            show_default="what the files are",
        ),
    ] = None,
    slides: Annotated[
        Path | None,
        typer.Option(
            help="Slides, or a manifest (path, slide_id, mpp): their µm per pixel and size.", show_default=False
        ),
    ] = None,
    mpp: Annotated[
        float | None, typer.Option(help="µm per level-0 pixel of every slide; a manifest wins.", show_default=False)
    ] = None,
    encoder: Annotated[
        str | None,
        typer.Option(
            "--encoder",
            "-e",
            help="Which, where files hold several; its name, where they do not say.",
            show_default=False,
        ),
    ] = None,
    patches: Annotated[
        Path | None, typer.Option(help="Folder that CLAM's create_patches_fp.py wrote.", show_default=False)
    ] = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Turn features of CLAM, TRIDENT, STAMP, AtlasPatch, slide2vec or LazySlide into those of wsimil or another of these.

    `wsimil train` takes these folders as they are; convert them to have heatmaps, or to use other tools.
    """
    with exits():
        from wsimil.stages import convert as stage
        from wsimil.stages import text
        from wsimil.stages.progress import reporter

        options = stage.ConvertOptions(
            to=stage.target(to), source=layout, slides=slides, mpp=mpp, encoder=encoder, patches=patches
        )
        with reporter(text.stderr(), quiet=quiet) as watch:
            summary = stage.convert(source, out, options=options, reporter=watch)
        text.show_conversion(summary, out, as_json=as_json)
        raise typer.Exit(1 if summary.failures else 0)


@commands.command(rich_help_panel=FEATURES)
def pack(
    features: Annotated[Path, typer.Argument(help="Folder that `wsimil extract` wrote.")],
    out: Annotated[Path, typer.Argument(metavar="OUT.zarr", help="The pack to write; its name ends in .zarr.")],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a pack of that name.")] = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Put the features of a whole cohort into a few large files, for file systems that are slow at many small ones.

    `train` and `predict` take a pack in place of the folder. Nothing is added to it: extract into the folder and pack again.
    """
    with exits():
        from wsimil.stages import pack as stage
        from wsimil.stages import text
        from wsimil.stages.progress import reporter

        with reporter(text.stderr(), quiet=quiet) as watch:
            summary = stage.pack(features, out, overwrite=overwrite, reporter=watch)
        text.show_packing(summary, out, as_json=as_json)
