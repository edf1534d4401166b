"""Commands that make answers of models."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from wsimil.cli.app import ANSWERS, AsJson, ConfigFile, MppOverride, Out, Quiet, Sets, Weights, exits

commands = typer.Typer(rich_markup_mode="rich")

Cohort = Annotated[Path, typer.Option("--cohort", help="CSV with labels; also site, scanner, ...", show_default=False)]
FeatureFolder = Annotated[
    Path | None,
    typer.Option(help="Folder that was predicted: thumbnails, and why slides are missing.", show_default=False),
]
Split = Annotated[str | None, typer.Option(help="Count this split alone.", show_default="all that was held out")]
LeftOut = Annotated[
    int | None,
    typer.Option(
        "--leave-one-out-tiles",
        min=2,
        help="Largest bag whose leave_one_out is computed by answering anew without each tile; time grows with its square.",
        show_default="4096",
    ),
]
Replicates = Annotated[int, typer.Option(min=100, help="Bootstrap replicates.")]
Seed = Annotated[int, typer.Option(min=0, help="Decides the draws.")]


@commands.command(rich_help_panel=ANSWERS)
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
    scores: Annotated[
        str | None,
        typer.Option(
            help="Kinds of tile scores to store, with commas: contribution, single, leave_one_out, integrated_gradients,"
            " gradient_x_input, attention.",
            show_default="contribution,attention; single for maxima and transmil",
        ),
    ] = None,
    score: Annotated[
        str | None,
        typer.Option(
            help="What overlays show: <kind>:<class or output>, as single:tumor, or attention.",
            show_default="contribution to the answer; of maxima and transmil single",
        ),
    ] = None,
    left_out: LeftOut = None,
    span: Annotated[
        str,
        typer.Option(
            "--range", help="What their colors span: cohort (one range for all slides), slide (its own) or rank."
        ),
    ] = "cohort",
    origin: Annotated[
        str, typer.Option(help="Where QuPath coordinates count from: bounds (QuPath's way) or level0.")
    ] = "bounds",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:<n>.")] = "auto",
    encoder_weights: Weights = None,
    mpp_override: MppOverride = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Tiles the encoder gets at once.")] = 32,
    readers: Annotated[int, typer.Option(min=1, help="Threads that read tiles.")] = 2,
    pseudonymize: Annotated[
        Path | None,
        typer.Option(
            help="File of pseudonyms for slides and patients, made where it is not there; keep it apart from the results.",
            show_default=False,
        ),
    ] = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Predict slides, and show which tiles speak for the answer. From slides, extraction runs first, as the model was trained."""
    with exits():
        from wsimil.evaluation.attribution import LEAVE_ONE_OUT_TILES, kinds_of
        from wsimil.stages import text
        from wsimil.stages.predict_options import PredictOptions
        from wsimil.stages.progress import reporter

        options = PredictOptions(
            device=device, heatmaps=heatmaps, scores=None if scores is None else kinds_of(scores), score=score,
            leave_one_out_tiles=left_out or LEAVE_ONE_OUT_TILES,
            range=range_of(span), origin=origin_of(origin), encoder_weights=encoder_weights, mpp_override=mpp_override,
            batch_size=batch_size, readers=readers, pseudonyms=pseudonymize,
        )  # fmt: skip
        from wsimil.stages import predict as stage  # brings torch, for which a mistake in an option should not wait

        with reporter(text.stderr(), quiet=quiet) as watch:
            summary = stage.predict(run, source, out, options=options, cohort_csv=cohort, reporter=watch)
        text.show_prediction(summary, out, as_json=as_json)
        raise typer.Exit(1 if summary.failures else 0)


@commands.command(rich_help_panel=ANSWERS)
def evaluate(
    predictions: Annotated[
        list[Path],
        typer.Argument(help="Folder that `wsimil predict` or `train` wrote; several are folds or seeds of one study."),
    ],
    cohort: Cohort,
    out: Out,
    features: FeatureFolder = None,
    model: Annotated[
        Path | None, typer.Option(help="Run that answered, where predictions do not say.", show_default=False)
    ] = None,
    groups: Annotated[
        str | None,
        typer.Option(help="Columns of the cohort, with commas.", show_default="site,scanner,stain_batch,sex,age"),
    ] = None,
    split: Split = None,
    replicates: Replicates = 2000,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Judge answers: metrics with intervals, by group, one HTML report, a model card. What a model learned from never counts."""
    with exits():
        from wsimil.stages import evaluate as stage
        from wsimil.stages import text_evaluation

        options = stage.EvaluateOptions(
            model=model, features=features, groups=split_names(groups), split=split, replicates=replicates, seed=seed
        )
        summary = stage.evaluate(predictions, cohort, out, options=options)
        text_evaluation.show_evaluation(summary, out, as_json=as_json)


@commands.command(rich_help_panel=ANSWERS)
def compare(
    first: Annotated[Path, typer.Argument(help="Folder that `wsimil predict` or `train` wrote.")],
    second: Annotated[Path, typer.Argument(help="Another one; differences are first less second.")],
    cohort: Cohort,
    out: Out,
    features: FeatureFolder = None,
    split: Split = None,
    replicates: Replicates = 2000,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Compare two models on the slides that both answered and neither saw: paired bootstrap, and DeLong for AUROC."""
    with exits():
        from wsimil.stages import compare as stage
        from wsimil.stages import text_evaluation
        from wsimil.stages.evaluate import EvaluateOptions

        options = EvaluateOptions(features=features, groups=(), split=split, replicates=replicates, seed=seed)
        summary = stage.compare(first, second, cohort, out, options=options)
        text_evaluation.show_comparison(summary, out, as_json=as_json)


@commands.command(rich_help_panel=ANSWERS)
def explain_check(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN...", help="Folder that `wsimil train` wrote; several are judged side by side."),
    ],
    features: Annotated[
        Path, typer.Option("--features", help="Feature folder or pack of the slides.", show_default=False)
    ],
    out: Out,
    cohort: Annotated[
        Path | None, typer.Option("--cohort", help="CSV with slide_id and patient_id.", show_default=False)
    ] = None,
    truth: Annotated[
        Path | None,
        typer.Option(help="Folder with <slide_id>.geojson or .npz of what pixels are.", show_default=False),
    ] = None,
    truth_output: Annotated[
        str | None,
        typer.Option(
            help="Output that the truth speaks of, or OUTPUT=NAME in its files.", show_default="the same name"
        ),
    ] = None,
    truth_margin: Annotated[
        float, typer.Option(min=0, help="Grow lesions by so many µm, and join those that meet; CAMELYON16: 37.5.")
    ] = 0.0,
    split: Annotated[str | None, typer.Option(help="Judge this split alone.", show_default="all held out")] = None,
    scores: Annotated[
        str | None, typer.Option(help="Scores, with commas: contribution,attention, ...", show_default="all")
    ] = None,
    left_out: LeftOut = None,
    random_orders: Annotated[int | None, typer.Option(min=2, help="Random orders a slide.", show_default="10")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Decides the draws.", show_default="0")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:<n>.")] = "auto",
    config: ConfigFile = None,
    sets: Sets = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Check whether maps show what answers rest on: tiles are dropped by score, and the model is asked again.

    On slides that a model neither learned from nor was chosen on.
    """
    with exits():
        from wsimil.config import load_config
        from wsimil.evaluation.attribution import SCORE_KINDS, kinds_of
        from wsimil.evaluation.faithfulness.flipping import FlipConfig
        from wsimil.stages import explain_check as stage
        from wsimil.stages import text
        from wsimil.stages.progress import reporter
        from wsimil.stages.text_explain import show_explain_check

        wanted = () if scores is None else kinds_of(scores)
        options = stage.ExplainOptions(
            cohort_csv=cohort, truth=truth, truth_output=truth_output,
            truth_margin_um=truth_margin, split=split,
            scores=tuple(kind for kind in SCORE_KINDS if kind in wanted), device=device,
            config=load_config(
                FlipConfig, config, overrides=sets or (),
                given={"random_orders": random_orders, "seed": seed, "leave_one_out_tiles": left_out},
            ),
        )  # fmt: skip
        with reporter(text.stderr(), quiet=quiet) as watch:
            summary = stage.explain_check(runs, features, out, options=options, reporter=watch)
        show_explain_check(summary, out, as_json=as_json)
        raise typer.Exit(1 if summary.failures else 0)


def split_names(names: str | None) -> tuple[str, ...] | None:
    """Names between commas; None stays None."""
    return None if names is None else tuple(name for part in names.split(",") if (name := part.strip()))


def range_of(text: str) -> Literal["cohort", "slide", "rank"]:
    """The value of --range. Raises ConfigError."""
    from wsimil.errors import ConfigError

    ranges: dict[str, Literal["cohort", "slide", "rank"]] = {"cohort": "cohort", "slide": "slide", "rank": "rank"}
    if text not in ranges:
        raise ConfigError(f"--range {text!r}: wanted cohort, slide or rank")
    return ranges[text]


def origin_of(text: str) -> Literal["bounds", "level0"]:
    """The value of --origin. Raises ConfigError."""
    from wsimil.errors import ConfigError

    origins: dict[str, Literal["bounds", "level0"]] = {"bounds": "bounds", "level0": "level0"}
    if text not in origins:
        raise ConfigError(f"--origin {text!r}: wanted bounds or level0")
    return origins[text]
