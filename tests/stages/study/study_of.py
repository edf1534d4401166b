"""Studies for tests, and a worker in this very process."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import yaml

from wsimil.config import load_config
from wsimil.stages.progress import Quiet
from wsimil.stages.study.config import StudyConfig
from wsimil.stages.study.planning import open_study, plan_study
from wsimil.stages.study.runners import runner_of
from wsimil.worklist import Ledger, WorkPlan, read_plan, write_plan
from wsimil.worklist.worker import Left, Worker

QUICK = {"method": {"name": "abmil"}, "fit": {"epochs": 2, "lr": 3e-3}, "device": "cpu"}


def planned(folder: Path, **given: object) -> WorkPlan:
    """The list of a study of these settings, written into `folder` and read again."""
    file = folder.with_suffix(".yaml")
    file.write_text(yaml.safe_dump(given), encoding="utf-8")
    write_plan(plan_study(load_config(StudyConfig, file), folder))
    return read_plan(folder)


def work(plan: WorkPlan, *, name: str = "one", stages: Sequence[str] = (), patience_s: float = math.inf) -> Left:
    """Do what there is to do."""
    ledger = Ledger(plan, worker=name, host=f"host-{name}")
    study = open_study(plan)
    worker = Worker(
        ledger=ledger,
        runner=lambda stage: runner_of(stage, study, ledger, Quiet()),
        watcher=Quiet(),
        patience_s=patience_s,
    )
    return worker.run([stage for stage in plan.stages if not stages or stage.name in stages])


def bytes_below(folder: Path, *, without: Sequence[str] = ()) -> dict[str, bytes]:
    """Every file below a folder by its place, but those of the names in `without`, and folders of such a name."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not set(path.relative_to(folder).parts) & set(without)
    }
