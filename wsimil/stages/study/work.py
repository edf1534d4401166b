"""Workers of a study: one process that does units, and one that watches over those of this machine."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import FrameType

from wsimil.errors import ConfigError
from wsimil.stages.interrupt import interrupt
from wsimil.stages.progress import Quiet, Reporter
from wsimil.worklist import Ledger, Stage, WorkPlan
from wsimil.worklist.attempts import Attempts
from wsimil.worklist.plan import check_links
from wsimil.worklist.status import PlanState, plan_state
from wsimil.worklist.supervise import STOPS, Supervisor, hostname, seats, worker_name
from wsimil.worklist.worker import Left, Worker, refuses


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
    scanned = _looker(plan).scan()
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


def chosen_stages(plan: WorkPlan, names: Sequence[str]) -> list[Stage]:
    """Stages of those names, or all, in the order in which they are done. Raises ConfigError for unknown ones."""
    wanted = [plan.stage(name).name for name in names]
    return [stage for stage in plan.stages if not wanted or stage.name in wanted]


def retry(plan: WorkPlan, *, stages: Sequence[str], units: Sequence[str]) -> list[str]:
    """Let units that were set aside be tried again, by id or name, or all of `stages`; ids of those that are.

    Raises ConfigError for a unit that is unknown, and for those of a stage that was closed: its tables name them as failed, and
    what comes after was built without them.
    """
    ledger = _looker(plan)
    known = {unit.id: unit for stage in chosen_stages(plan, stages) for unit in stage.units}
    names: dict[str, list[str]] = {}
    for unit in known.values():  # a slide's answer and its overlay have one name
        names.setdefault(unit.name, []).append(unit.id)
    wanted: list[str] = []
    for one in units:
        if one not in known and one not in names:
            raise ConfigError(
                f"unit {one!r}: {plan.folder} has none of that id or name; see `wsimil status {plan.folder}`"
            )
        wanted += [one] if one in known else names[one]
    scanned = ledger.scan()
    bad = [unit_id for unit_id in wanted or known if unit_id in scanned and scanned[unit_id].is_bad]
    for stage in plan.stages:
        closed = [unit for unit in stage.units if unit.last and unit.id in scanned]
        late = [unit.id for unit in stage.units if unit.id in bad and not unit.last]
        if late and closed:
            raise ConfigError(
                f"units {', '.join(late[:5])} of {stage.name} cannot be tried again: its tables ({closed[0].id}) were begun"
                " without them, and what comes after is built on these. Plan anew into another folder; features that are there"
                f" stay as they are: let `wsimil extract` add what is missing to {plan.folder / 'features'}, and give that as"
                " features"
            )
    return [unit_id for unit_id in bad if ledger.forgive(unit_id)]


def state(plan: WorkPlan, stages: Sequence[str]) -> PlanState:
    """How far `stages` are, or all."""
    chosen = replace(plan, stages=tuple(chosen_stages(plan, stages)))
    return plan_state(chosen, _looker(plan))


def bad_units(plan: WorkPlan, stages: Sequence[str]) -> int:
    """How many units of `stages` are set aside."""
    scanned = _looker(plan).scan()
    return sum(_left_and_bad(stage, scanned)[1] for stage in chosen_stages(plan, stages))


def with_max_bad(plan: WorkPlan, max_bad: float | None) -> WorkPlan:
    """The plan with another share of units that may be bad."""
    return plan if max_bad is None else replace(plan, max_bad=max_bad)


class _Notes(Quiet):
    """What is worth knowing of a unit, without its progress: many come and go at once."""

    def __init__(self, watch: Reporter) -> None:
        self._watch = watch

    def note(self, text: str) -> None:
        """Pass it on."""
        self._watch.note(text)


def _looker(plan: WorkPlan) -> Ledger:
    """What is written down, for somebody who does no unit."""
    return Ledger(plan, worker=worker_name(), host=hostname())


def _left_and_bad(stage: Stage, scanned: Mapping[str, Attempts]) -> tuple[int, int]:
    """How many units of a stage are not finished, and how many are set aside."""
    seen = [scanned[unit.id] for unit in stage.units if unit.id in scanned]
    return len(stage.units) - sum(one.is_finished for one in seen), sum(one.is_bad for one in seen)


def _refused_before(plan: WorkPlan, chosen: Sequence[Stage], scanned: Mapping[str, Attempts]) -> bool:
    """Whether stages before the first chosen one have too many bad units. Raises ConfigError where one is not finished."""
    for stage in plan.stages[: plan.stages.index(chosen[0])]:
        left, bad = _left_and_bad(stage, scanned)
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
    found = [(stage, *_left_and_bad(stage, scanned)) for stage in chosen]
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
