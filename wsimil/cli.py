"""The command line: parses, loads the config, calls a stage, turns its outcome into text and an exit code.

Exit codes: 0 all done, 1 some slides failed (see failures.csv), 2 usage or config error, 130 interrupted (run again to go on).
Nothing heavy is imported before a command runs, so that help answers at once.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal

import typer

from wsimil import __version__
from wsimil.errors import SlideError, WsimilError

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
    float | None,
    typer.Option(help="µm per level-0 pixel of every slide, whatever its metadata say.", show_default=False),
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
    with _exits():
        from wsimil.config import load_config
        from wsimil.extraction.config import ExtractConfig
        from wsimil.extraction.sources import Shard, list_sources

        given = {
            "encoder": encoder, "encoder_weights": _str(encoder_weights), "tile.tile_um": tile_um, "tile.size_px": tile_px,
            "tile.mpp": mpp, "tile.overlap": overlap, "tile.min_tissue": min_tissue, "mpp_override": mpp_override,
            "masks": _str(masks), "device": device, "precision": precision, "dtype": dtype, "store": store,
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


@app.command()
def train(
    features: Annotated[
        Path,
        typer.Argument(
            help="Folder that `wsimil extract` wrote, a pack of it, or another tool's: see `wsimil convert`."
        ),
    ],
    cohort: Annotated[
        Path,
        typer.Option(
            "--cohort",
            help="CSV: slide_id, patient_id, label (or the columns of task); optionally site, split or fold.",
            show_default=False,
        ),
    ],
    out: Out,
    method: Annotated[
        str | None, typer.Option("--method", "-m", help="See `wsimil list methods`.", show_default="abmil")
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(min=1, help="Most epochs.", show_default="see `wsimil config train`")
    ] = None,
    lr: Annotated[
        float | None, typer.Option(help="Peak learning rate.", show_default="see `wsimil config train`")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Decides weights, order and dropout.", show_default="0")
    ] = None,
    balance: Annotated[
        str | None, typer.Option(help="class_weights, sampling or none.", show_default="class_weights")
    ] = None,
    folds: Annotated[
        int | None, typer.Option(min=2, help="Split patients into that many folds.", show_default=False)
    ] = None,
    fold: Annotated[int | None, typer.Option(min=0, help="The fold that is the test split.", show_default="0")] = None,
    device: Device = None,
    config: ConfigFile = None,
    sets: Sets = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an earlier run in the output folder.")
    ] = False,
    dry_run: DryRun = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Train a model on slide labels. Patients never cross splits; an interrupted run goes on when started again."""
    with _exits():
        from wsimil.config import load_config
        from wsimil.stages import text
        from wsimil.stages import train as stage
        from wsimil.stages.progress import reporter

        given = {
            "method.name": method, "fit.epochs": epochs, "fit.lr": lr, "fit.seed": seed, "fit.balance": balance,
            "split.folds": folds, "split.fold": fold, "device": device,
        }  # fmt: skip
        resolved = load_config(stage.TrainConfig, config, overrides=sets or (), given=given)
        if dry_run:
            text.show_train_plan(stage.plan(resolved, features, cohort), as_json=as_json)
            return
        with reporter(text.stderr(), quiet=quiet) as watch:
            summary = stage.train(resolved, features, cohort, out, overwrite=overwrite, reporter=watch)
        text.show_training(summary, out, as_json=as_json)


@app.command()
def predict(
    run: Annotated[Path, typer.Argument(help="Folder that `wsimil train` wrote.")],
    source: Annotated[
        Path,
        typer.Argument(metavar="INPUT", help="Feature folder or pack; or a slide, a folder of slides, a manifest."),
    ],
    out: Out,
    cohort: Annotated[
        Path | None, typer.Option("--cohort", help="CSV with labels, to measure against.", show_default=False)
    ] = None,
    heatmaps: Annotated[bool, typer.Option(help="Write QuPath GeoJSON and PNG overlays.")] = True,
    score: Annotated[
        str | None,
        typer.Option(
            help="What overlays show: contribution:<class or output> or attention.", show_default="contribution"
        ),
    ] = None,
    origin: Annotated[
        str, typer.Option(help="Where QuPath coordinates count from: bounds (QuPath's way) or level0.")
    ] = "bounds",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:<n>.")] = "auto",
    encoder_weights: Weights = None,
    mpp_override: MppOverride = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Tiles the encoder gets at once.")] = 32,
    readers: Annotated[int, typer.Option(min=1, help="Threads that read tiles.")] = 2,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Predict slides, and show which tiles speak for the answer. From slides, extraction runs first, as the model was trained."""
    with _exits():
        from wsimil.errors import ConfigError
        from wsimil.stages import predict as stage
        from wsimil.stages import text
        from wsimil.stages.progress import reporter

        origins: dict[str, Literal["bounds", "level0"]] = {"bounds": "bounds", "level0": "level0"}
        if origin not in origins:
            raise ConfigError(f"--origin {origin!r}: wanted bounds or level0")
        options = stage.PredictOptions(
            device=device, heatmaps=heatmaps, score=score, origin=origins[origin], encoder_weights=encoder_weights,
            mpp_override=mpp_override, batch_size=batch_size, readers=readers,
        )  # fmt: skip
        with reporter(text.stderr(), quiet=quiet) as watch:
            summary = stage.predict(run, source, out, options=options, cohort_csv=cohort, reporter=watch)
        text.show_prediction(summary, out, as_json=as_json)
        raise typer.Exit(1 if summary.failures else 0)


@app.command()
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
    with _exits():
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


@app.command()
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
    with _exits():
        from wsimil.stages import pack as stage
        from wsimil.stages import text
        from wsimil.stages.progress import reporter

        with reporter(text.stderr(), quiet=quiet) as watch:
            summary = stage.pack(features, out, overwrite=overwrite, reporter=watch)
        text.show_packing(summary, out, as_json=as_json)


@app.command()
def import_checkpoint(
    file: Annotated[Path, typer.Argument(help="What torch.save wrote of a state_dict, or a .safetensors file.")],
    source: Annotated[str, typer.Option("--from", help="Whose code: see the names above.", show_default=False)],
    out: Out,
    classes: Annotated[
        str | None,
        typer.Option(help="Names of the logits in their order, with commas.", show_default="negative,positive"),
    ] = None,
    features: Annotated[
        Path | None,
        typer.Option(help="Feature folder of the kind that the checkpoint was trained on.", show_default=False),
    ] = None,
    sets: Sets = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a model in the output folder.")] = False,
    as_json: AsJson = False,
) -> None:
    """Make a run for `wsimil predict` of weights that official code trained.

    Sources: acmil, aem, attention_deep_mil, clam, dsmil, dtfd, mhim, mil_lab, rrt, transmil, xmil.
    """
    with _exits():
        from wsimil.config import load_config
        from wsimil.stages import import_checkpoint as stage
        from wsimil.stages import text

        names = None if classes is None else tuple(name.strip() for name in classes.split(","))
        config = load_config(stage.ImportConfig, overrides=sets or ())
        summary = stage.import_checkpoint(
            file, source, out, config=config, classes=names, features=features, overwrite=overwrite
        )
        text.show_import(summary, out, as_json=as_json)


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="Output folder.")] = Path("demo"),
    slides: Annotated[int, typer.Option(min=8, help="How many slides to draw.")] = 24,
    seed: Annotated[int, typer.Option(min=0, help="Decides what is drawn and how training starts.")] = 0,
) -> None:
    """Draw slides with known tumor, run extract, train and predict on them, and say how well that went."""
    with _exits():
        from wsimil.stages import text
        from wsimil.stages.demo import demo as run_demo

        text.show_demo(run_demo(out, slides=slides, seed=seed, say=text.say), out)


@app.command()
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
    with _exits():
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


@app.command()
def doctor(
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="A folder that is going to be written to.", show_default=False)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check that this machine is ready; every line says PASS, WARN or FAIL, and what to do."""
    with _exits():
        from wsimil.stages import text
        from wsimil.stages.doctor import diagnose

        checks = diagnose(out)
        text.show_checks(checks, as_json=as_json)
        raise typer.Exit(1 if any(check.verdict == "FAIL" for check in checks) else 0)


listing = typer.Typer(no_args_is_help=True, help="List what there is: encoders or methods.")
app.add_typer(listing, name="list")


@listing.command("encoders")
def list_encoders(as_json: AsJson = False) -> None:
    """Encoders with their ids, sizes and licenses."""
    with _exits():
        from wsimil.encoders import list_cards
        from wsimil.stages import text

        text.show_encoders(list_cards(), as_json=as_json)


@listing.command("methods")
def list_methods(as_json: AsJson = False) -> None:
    """MIL methods, with their hyperparameters."""
    with _exits():
        from wsimil.mil import registry
        from wsimil.stages import text

        configs = {name: registry.config_class(name) for name in registry.names()}
        text.show_methods({name: config().model_dump(mode="json") for name, config in configs.items()}, as_json=as_json)


@app.command("config")
def show_config(
    command: Annotated[str, typer.Argument(help="extract or train.")],
    schema: Annotated[bool, typer.Option("--schema", help="JSON Schema, for editors.")] = False,
) -> None:
    """Print the default config of a command as YAML, to start a file of your own from."""
    with _exits():
        from wsimil.errors import ConfigError
        from wsimil.stages import text

        if command == "extract":
            from wsimil.extraction.config import ExtractConfig as Wanted
        elif command == "train":
            from wsimil.stages.train import TrainConfig as Wanted  # type: ignore[assignment]  # one of two, by name
        else:
            raise ConfigError(f"config {command!r}: wanted extract or train")
        if schema:
            text.say_json(Wanted.model_json_schema())
        else:
            typer.echo(Wanted().to_yaml(), nl=False)


@contextmanager
def _exits() -> Iterator[None]:
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


def _str(path: Path | None) -> str | None:
    return None if path is None else str(path)
