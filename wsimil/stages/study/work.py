"""Workers of a study: one process that does units, and one that watches over those of this machine."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType

from wsimil.errors import ConfigError
from wsimil.stages.interrupt import interrupt
from wsimil.stages.progress import Quiet, Reporter
from wsimil.stages.study.looking import chosen_stages, left_and_bad, looker
from wsimil.worklist import Ledger, Stage, WorkPlan
from wsimil.worklist.attempts import Attempts
from wsimil.worklist.host import hostname
from wsimil.worklist.plan import check_links, refuses
from wsimil.worklist.supervise import STOPS, Supervisor, seats
from wsimil.worklist.worker import Left, Worker


def supervise(
    plan: WorkPlan,
    *,
    stages: Sequence[str],
    gpus: str,
    workers: int | None,
    options: Sequence[str],
    watch: Reporter,
) -> int:
    """Keep a worker on every GPU of this machine until the units of `stages` are finished; the exit code.

    `options` go to each worker as they are. Raises ConfigError, OutputError before any of them starts.
    """
    chosen = chosen_stages(plan, stages)
    places = seats(gpus, workers, os.environ)
    check_links(plan.work / "scratch")
    scanned = looker(plan).scan()
    if _refused_before(plan, chosen, scanned):
        return int(Left.REFUSED)
    if _is_finished(
        plan, chosen, scanned
    ):  # as for those who come late: a worker would only load torch to find that out
        return int(Left.FINISHED)
    command = [sys.executable, "-m", "wsimil", "worker", str(plan.folder), *options]
    for stage in stages:
        command += ["--stage", stage]
    return Supervisor(plan=plan, seats=places, command=lambda name: [*command, "--name", name], watcher=watch).run()


def work(
    plan: WorkPlan, *, name: str, stages: Sequence[str], patience_s: float, weights: Path | None, watch: Reporter
) -> int:
    """Be one worker, called `name`, that reads the encoder's weights from `weights`; the exit code.

    Raises WsimilError where it could do nothing.
    """
    from wsimil.stages.study.planning import open_study
    from wsimil.stages.study.runners import runner_of

    study, device = open_study(plan, weights=weights), os.environ.get("WSIMIL_DEVICE", "cpu")
    _refuse_lost_gpu(device)
    ledger = Ledger(plan, worker=name, host=hostname())
    worker = Worker(
        ledger=ledger, runner=lambda stage: runner_of(stage, study, ledger, _Notes(watch)), watcher=watch, device=device,
        patience_s=patience_s,
    )  # fmt: skip
    stopped: list[int] = []

    def stop(number: int, _: FrameType | None) -> None:
        if not stopped:
            stopped.append(number)
            os.kill(os.getpid(), signal.SIGINT)  # which a stage knows how to end upon

    for number in STOPS:
        if number != signal.SIGINT:
            signal.signal(number, stop)
    try:
        with interrupt.remembered():
            return int(worker.run(chosen_stages(plan, stages)))
    except KeyboardInterrupt:
        return STOPS[stopped[0] if stopped else signal.SIGINT]


class _Notes(Quiet):
    """What is worth knowing of a unit, without its progress: many come and go at once."""

    def __init__(self, watch: Reporter) -> None:
        self._watch = watch

    def note(self, text: str) -> None:
        """Pass it on."""
        self._watch.note(text)


def _refused_before(plan: WorkPlan, chosen: Sequence[Stage], scanned: Mapping[str, Attempts]) -> bool:
    """Whether stages before the first chosen one have too many bad units. Raises ConfigError where one is not finished."""
    for stage in plan.stages[: plan.stages.index(chosen[0])]:
        left, bad = left_and_bad(stage, scanned)
        if left:
            raise ConfigError(
                f"stage {chosen[0].name} comes after {stage.name}, of which {left} of {len(stage.units)} units are not finished;"
                f" run `wsimil worker {plan.folder} --stage {stage.name}` first"
            )
        if refuses(plan, stage, bad):
            return True
    return False


def _is_finished(plan: WorkPlan, chosen: Sequence[Stage], scanned: Mapping[str, Attempts]) -> bool:
    """Whether nothing is left of stages, and none of them has too many bad units."""
    found = [(stage, *left_and_bad(stage, scanned)) for stage in chosen]
    return not any(left or refuses(plan, stage, bad) for stage, left, bad in found)


def _refuse_lost_gpu(device: str) -> None:
    if not device.startswith("gpu"):
        return
    import torch

    if not torch.cuda.is_available():
        raise ConfigError(
            f"this worker was given {device} and torch {torch.__version__} sees none, so it would crawl on the processor; mend"
            " the driver or install a build of torch for it, or say --gpus none"
        )
