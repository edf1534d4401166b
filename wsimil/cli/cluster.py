"""Commands for work that many machines share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from wsimil.cli.app import CLUSTER, AsJson, DryRun, Out, Quiet, Sets, exits

commands = typer.Typer(rich_markup_mode="rich")

Study = Annotated[Path, typer.Argument(help="Folder that `wsimil plan` wrote.")]
Stages = Annotated[
    list[str] | None,
    typer.Option(
        "--stage", help="extract, train, predict, overlays or report. Repeatable.", show_default="all, in order"
    ),
]
MaxBad = Annotated[
    float | None,
    typer.Option(
        min=0, max=1, help="Share of bad units beyond which nothing is built on a stage.", show_default="the plan's"
    ),
]


@commands.command(rich_help_panel=CLUSTER)
def plan(
    study: Annotated[Path, typer.Argument(metavar="STUDY.yaml", help="What to do; see configs/study.")],
    out: Out,
    sets: Sets = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Write the work list of a study: every slide, fold and model as a unit. Any number of workers then share it."""
    with exits():
        from wsimil.config import load_config
        from wsimil.stages.study.config import StudyConfig
        from wsimil.stages.study.planning import plan_study, refuse_other_plan
        from wsimil.stages.text_worklist import show_work_plan
        from wsimil.worklist import write_plan
        from wsimil.worklist.plan import refuse_foreign_folder

        planned = plan_study(load_config(StudyConfig, study, overrides=sets or ()), out)
        refuse_foreign_folder(planned.folder)
        refuse_other_plan(planned)
        written = None if dry_run else write_plan(planned)
        show_work_plan(planned, written=written, as_json=as_json)


@commands.command(rich_help_panel=CLUSTER)
def worker(
    study: Study,
    stages: Stages = None,
    gpus: Annotated[
        str, typer.Option(help="One worker for each of: all, none, or a number.", show_default="all that are visible")
    ] = "auto",
    workers: Annotated[
        int | None, typer.Option(min=1, help="Workers on the processor, where no GPU is used.", show_default="1")
    ] = None,
    patience: Annotated[
        float | None,
        typer.Option(min=0, help="Seconds to wait for units that others hold.", show_default="until they end"),
    ] = None,
    max_bad: MaxBad = None,
    encoder_weights: Annotated[
        Path | None,
        typer.Option(
            help="Copy of the planned weights on this machine's own disk; other content is refused.",
            show_default="the planned file",
        ),
    ] = None,
    name: Annotated[str | None, typer.Option(hidden=True)] = None,
    quiet: Quiet = False,
) -> None:
    """Do units of a study until none is left. Start it as often, and on as many machines, as you like.

    Exits with 0 when all is done, 1 when some units are bad, 3 when too many are, 4 when this machine is at fault, 75 when it was
    told to make room (SIGUSR1) and should be started again.
    """
    with exits():
        from wsimil.stages import text
        from wsimil.stages.progress import Lines
        from wsimil.stages.progress import Quiet as Silent
        from wsimil.stages.study import looking
        from wsimil.stages.study import work as stage
        from wsimil.stages.text_worklist import show_refusal
        from wsimil.worklist import read_plan
        from wsimil.worklist.worker import Left

        planned = looking.with_max_bad(read_plan(study.absolute()), max_bad)
        watch = Silent() if quiet else Lines(text.stderr())
        if name is not None:
            patience_s = float("inf") if patience is None else patience
            raise typer.Exit(
                stage.work(
                    planned, name=name, stages=stages or (), patience_s=patience_s, weights=encoder_weights, watch=watch
                )
            )
        options = [*(["--quiet"] if quiet else []), *([] if patience is None else ["--patience", str(patience)])]
        options += [] if max_bad is None else ["--max-bad", str(max_bad)]
        options += [] if encoder_weights is None else ["--encoder-weights", str(encoder_weights)]
        code = stage.supervise(planned, stages=stages or (), gpus=gpus, workers=workers, options=options, watch=watch)
        if code == 0 and looking.bad_units(planned, stages or ()):
            code = 1
        if code == Left.REFUSED:
            show_refusal(planned, looking.state(planned, ()))
        raise typer.Exit(code)


@commands.command(rich_help_panel=CLUSTER)
def status(
    study: Study,
    stages: Stages = None,
    gate: Annotated[
        bool, typer.Option("--gate", help="Exit with 3 where too many units are bad, 5 where some are left.")
    ] = False,
    max_bad: MaxBad = None,
    watch: Annotated[bool, typer.Option("--watch", help="Again every few seconds, until all is finished.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show how far a study is, who is at work and what went wrong; from its folder alone, also when all workers are dead."""
    with exits():
        import time

        from wsimil.stages import text
        from wsimil.stages.study import looking
        from wsimil.stages.text_worklist import show_status
        from wsimil.worklist import read_plan

        planned = looking.with_max_bad(read_plan(study.absolute()), max_bad)
        while True:
            state = looking.state(planned, stages or ())
            if watch:
                text.stdout().clear()
            show_status(planned, state, as_json=as_json)
            if not watch or all(one.is_finished for one in state.stages):
                break
            time.sleep(5)
        if gate and any(one.refused for one in state.stages):
            raise typer.Exit(3)
        if gate and not all(one.is_finished for one in state.stages):
            raise typer.Exit(5)


@commands.command(rich_help_panel=CLUSTER)
def retry(
    study: Study,
    units: Annotated[list[str] | None, typer.Argument(help="Ids or names.", show_default="all bad ones")] = None,
    stages: Stages = None,
    as_json: AsJson = False,
) -> None:
    """Let units that were set aside be tried again, once what was wrong with them is mended."""
    with exits():
        from wsimil.stages.study import looking
        from wsimil.stages.text import say, say_json
        from wsimil.worklist import read_plan

        planned = read_plan(study.absolute())
        again = looking.retry(planned, stages=stages or (), units=units or ())
        if as_json:
            say_json(again)
            return
        say(
            f"{len(again)} units will be tried again: {', '.join(again[:20])}{' ...' if len(again) > 20 else ''}"
            if again
            else "no unit is bad"
        )
