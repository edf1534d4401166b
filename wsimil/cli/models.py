"""Commands that make models of features."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from wsimil.cli.app import MODELS, AsJson, ConfigFile, Device, DryRun, Out, Quiet, Sets, app, exits


@app.command(rich_help_panel=MODELS)
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
    with exits():
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


@app.command(rich_help_panel=MODELS)
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
    with exits():
        from wsimil.config import load_config
        from wsimil.stages import import_checkpoint as stage
        from wsimil.stages import text

        names = None if classes is None else tuple(name.strip() for name in classes.split(","))
        config = load_config(stage.ImportConfig, overrides=sets or ())
        summary = stage.import_checkpoint(
            file, source, out, config=config, classes=names, features=features, overwrite=overwrite
        )
        text.show_import(summary, out, as_json=as_json)
