"""Commands that make models of features."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from pydantic import JsonValue

from wsimil.cli.app import MODELS, AsJson, ConfigFile, Device, DryRun, Out, Quiet, Sets, exits, path_text

commands = typer.Typer(rich_markup_mode="rich")


@commands.command(rich_help_panel=MODELS)
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
    splits: Annotated[
        Path | None, typer.Option(help="File that `wsimil splits make` wrote, in place of folds.", show_default=False)
    ] = None,
    round_: Annotated[
        str | None, typer.Option("--round", help="Which round of the splits.", show_default="the only one")
    ] = None,
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
        from wsimil.stages.progress import reporter
        from wsimil.stages.train_config import TrainConfig

        given = {
            "method.name": method, "fit.epochs": epochs, "fit.lr": lr, "fit.seed": seed, "fit.balance": balance,
            "split.folds": folds, "split.fold": fold, "split.file": path_text(splits),
            "split.round": round_, "device": device,
        }  # fmt: skip
        resolved = load_config(TrainConfig, config, overrides=sets or (), given=given)
        from wsimil.stages import train as stage  # brings torch, for which a mistake in a config should not wait

        if dry_run:
            text.show_train_plan(stage.plan(resolved, features, cohort), as_json=as_json)
            return
        with reporter(text.stderr(), quiet=quiet) as watch:
            summary = stage.train(resolved, features, cohort, out, overwrite=overwrite, reporter=watch)
        text.show_training(summary, out, as_json=as_json)


@commands.command(rich_help_panel=MODELS)
def crossval(
    features: Annotated[Path, typer.Argument(help="Feature folder, as `wsimil train` takes it.")],
    cohort: Annotated[Path, typer.Option("--cohort", help="CSV, as `wsimil train` takes it.", show_default=False)],
    splits: Annotated[Path, typer.Option(help="File that `wsimil splits make` wrote.", show_default=False)],
    out: Out,
    configs: Annotated[
        list[Path] | None,
        typer.Option("--config", "-c", help="YAML config; repeat it to compare several.", show_default=False),
    ] = None,
    sets: Sets = None,
    rounds: Annotated[
        list[str] | None,
        typer.Option("--round", help="A round. Repeatable.", show_default="all that have a test split"),
    ] = None,
    seeds: Annotated[str, typer.Option(help="Seeds, with commas.")] = "0",
    workers: Annotated[int, typer.Option(min=1, help="Runs at a time, each in a process of its own.")] = 1,
    dry_run: DryRun = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Train all rounds of a study × seeds × configs, and sum up. A failed run is recorded; a rerun does what is missing."""
    with exits():
        from wsimil.config import load_config
        from wsimil.errors import ConfigError
        from wsimil.stages import text
        from wsimil.stages.progress import reporter
        from wsimil.stages.text_study import show_items, show_study
        from wsimil.stages.train_config import TrainConfig
        from wsimil.stages.work_items import work_items

        paths = configs or []
        names = [path.stem for path in paths] or ["default"]
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise ConfigError(
                f"two configs are named {twice[0]!r}; runs lie in folders of that name, so rename one file"
            )
        if not all(seed.strip().isdecimal() for seed in seeds.split(",")):
            raise ConfigError(f"--seeds {seeds!r}: wanted whole numbers with commas, such as 0,1,2")
        loaded = [load_config(TrainConfig, path, overrides=sets or ()) for path in (*paths,) or (None,)]
        items = work_items(
            dict(zip(names, loaded, strict=True)), features, cohort, out, splits=splits, rounds=rounds or (),
            seeds=[int(seed) for seed in seeds.split(",")],
        )  # fmt: skip
        from wsimil.stages import crossval as stage

        if dry_run:
            stage.refuse_untrainable(items)
            show_items(items, as_json=as_json)
            return
        with reporter(text.stderr(), quiet=quiet) as watch:
            summary = stage.crossval(items, out, workers=workers, reporter=watch)
        show_study(summary, out, as_json=as_json)
        raise typer.Exit(1 if summary.failures else 0)


@commands.command(rich_help_panel=MODELS)
def search(
    features: Annotated[Path, typer.Argument(help="Feature folder, as for `wsimil train`.")],
    cohort: Annotated[Path, typer.Option("--cohort", help="CSV, as for `wsimil train`.", show_default=False)],
    splits: Annotated[Path, typer.Option(help="File that `wsimil splits make` wrote.", show_default=False)],
    space: Annotated[
        Path, typer.Option(help="YAML: space, trials, sampler, seed; see configs/search.", show_default=False)
    ],
    out: Out,
    round_: Annotated[
        str | None,
        typer.Option("--round", help="Search within this round; its test split is left out.", show_default=False),
    ] = None,
    trials: Annotated[int | None, typer.Option(min=1, help="Settings to try.", show_default="30")] = None,
    workers: Annotated[int, typer.Option(min=1, help="Rounds that train side by side.")] = 1,
    config: ConfigFile = None,
    sets: Sets = None,
    dry_run: DryRun = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Search hyperparameters on validation splits; slides of a test split are never opened. Goes on when started again."""
    with exits():
        from wsimil.config import load_config
        from wsimil.stages import search as stage
        from wsimil.stages import text
        from wsimil.stages.progress import reporter
        from wsimil.stages.text_search import show_search, show_search_plan
        from wsimil.stages.train_config import TrainConfig

        searched = load_config(stage.SearchConfig, space, given={"trials": trials})
        base = load_config(TrainConfig, config, overrides=sets or ())
        planned = stage.plan_search(searched, base, cohort, splits, outer=round_)
        if dry_run:
            show_search_plan(planned, as_json=as_json)
            return
        with reporter(text.stderr(), quiet=quiet) as watch:
            found = stage.search(planned, features, out, workers=workers, reporter=watch)
        show_search(found, out, as_json=as_json)


@commands.command(rich_help_panel=MODELS)
def ensemble(
    runs: Annotated[list[Path], typer.Argument(help="Folders that `wsimil train` or `crossval` wrote, two or more.")],
    out: Out,
    features: Annotated[
        Path | None,
        typer.Option(
            "--features", help="What they learned from: fits calibration and threshold anew.", show_default=False
        ),
    ] = None,
    sets: Annotated[
        list[str] | None,
        typer.Option("--set", help="Keys of the decision: --set threshold=youden.", show_default=False),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a model in the output folder.")] = False,
    as_json: AsJson = False,
) -> None:
    """Join runs of folds and seeds to one model, whose logits are the mean of theirs."""
    with exits():
        from wsimil.config import load_config
        from wsimil.evaluation.decision import DecisionConfig
        from wsimil.stages import ensemble as stage
        from wsimil.stages.text_study import show_ensemble

        config = load_config(DecisionConfig, overrides=sets or ())
        joined = stage.ensemble(runs, out, features=features, decision=config, overwrite=overwrite)
        show_ensemble(joined, out, as_json=as_json)


@commands.command(rich_help_panel=MODELS)
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


splitting = typer.Typer(
    no_args_is_help=True, help="Make splits of a cohort once, as a file for every method; check them."
)
commands.add_typer(splitting, name="splits", rich_help_panel=MODELS)

CohortFile = Annotated[Path, typer.Argument(help="CSV: slide_id, patient_id, label (or the columns of task), site.")]
Features = Annotated[
    Path | None, typer.Option("--features", help="Feature folder: finds one slide under two names.", show_default=False)
]


@splitting.command("make")
def make_splits(
    cohort: CohortFile,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="The file to write; its name ends in .json.", show_default=False)
    ],
    kind: Annotated[
        str | None, typer.Option(help="kfold, nested, monte_carlo, external or column.", show_default="kfold")
    ] = None,
    folds: Annotated[int | None, typer.Option(min=2, help="Folds.", show_default="5")] = None,
    repeats: Annotated[
        int | None, typer.Option(min=1, help="How often folds are drawn anew.", show_default="1")
    ] = None,
    preserve_sites: Annotated[
        bool, typer.Option("--preserve-sites", help="Whole sites are tested on, never learned from too.")
    ] = False,
    external: Annotated[
        list[str] | None, typer.Option(help="A site that is tested on alone. Repeatable.", show_default=False)
    ] = None,
    published: Annotated[
        list[Path] | None,
        typer.Option(help="Splits file of CLAM, TransMIL, ACMIL or xMIL. Repeatable.", show_default=False),
    ] = None,
    features: Features = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Decides who is drawn.", show_default="0")] = None,
    config: ConfigFile = None,
    sets: Sets = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file of that name.")] = False,
    as_json: AsJson = False,
) -> None:
    """Draw splits by patient, or read published ones, and write them as one file with a digest."""
    with exits():
        from wsimil.config import load_config
        from wsimil.splits import SplitsConfig
        from wsimil.stages import splits as stage
        from wsimil.stages.text_splits import show_splits

        given: dict[str, JsonValue] = {
            "kind": kind or ("external" if external else None), "folds": folds, "repeats": repeats, "seed": seed,
            "preserve_sites": preserve_sites or None, "external": [*external] if external else None,
        }  # fmt: skip
        resolved = load_config(SplitsConfig, config, overrides=sets or (), given=given)
        made = stage.make(resolved, cohort, out, features=features, published=published or (), overwrite=overwrite)
        show_splits(made, out, as_json=as_json)


@splitting.command("check")
def check_splits(
    splits: Annotated[Path, typer.Argument(help="File that `wsimil splits make` wrote.")],
    cohort: Annotated[Path, typer.Option("--cohort", help="The cohort that it is for.", show_default=False)],
    features: Features = None,
    sets: Annotated[
        list[str] | None, typer.Option("--set", help="Keys of the task: --set kind=survival.", show_default=False)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say whether splits still hold for a cohort: nobody on two sides, no slide twice, nothing changed."""
    with exits():
        from wsimil.config import load_config
        from wsimil.stages import splits as stage
        from wsimil.stages.text_splits import show_splits
        from wsimil.targets.config import TaskConfig

        task = load_config(TaskConfig, overrides=sets or ())
        show_splits(stage.check(splits, cohort, task=task, features=features), splits, as_json=as_json)
