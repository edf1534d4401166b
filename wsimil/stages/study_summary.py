"""The tables of a study: metrics of each config over its runs, and how far configs are from the first."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Container, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self, cast

import numpy as np

from wsimil.cohort import BagUnit
from wsimil.evaluation.cases import Cases
from wsimil.evaluation.decision import load_decided
from wsimil.evaluation.judgement import Judged
from wsimil.evaluation.runs import PairedRuns, RunSpread, between_runs, holm, over_runs
from wsimil.evaluation.table import Row, read_table
from wsimil.files import write_text
from wsimil.stages.answered import answer_columns, question, shared_task
from wsimil.stages.work_items import WorkItem
from wsimil.targets import Task


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigDifference:
    """A metric of a config less that of another one, `less`, on the runs that both have.

    `p_holm` and `retrained_p_holm` are the p-values of `paired` corrected for how many configs are held against that one.
    """

    config: str
    less: str
    metric: str
    paired: PairedRuns
    p_holm: float | None
    retrained_p_holm: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyTables:
    """Metrics of each config over its runs, and of each but the first, `less`, the differences from that one's.

    `apart` are configs that cannot be held against the first, with the reason.
    """

    configs: Mapping[str, Mapping[str, RunSpread]]
    less: str
    differences: tuple[ConfigDifference, ...]
    apart: Mapping[str, str]


def sum_up(items: Sequence[WorkItem], failures: Mapping[str, str], out: Path) -> StudyTables:
    """Sum up the runs that did not fail, in summary.json, summary.csv and, of several configs, differences.csv; failures.csv has
    the others."""
    _write_failures(out / "failures.csv", failures)
    tables = study_tables(items, failures)
    write_text(out / "summary.json", json.dumps(_json(tables.configs), indent=1) + "\n")
    write_text(out / "summary.csv", _csv(tables.configs))
    differing = out / "differences.csv"
    differing.unlink(missing_ok=True)
    if tables.differences or tables.apart:
        write_text(differing, _differences_csv(tables))
    return tables


def study_tables(items: Sequence[WorkItem], failed: Container[str] = ()) -> StudyTables:
    """The tables of the test splits of runs, all of them finished but for those whose names are in `failed`."""
    by_config: dict[str, list[WorkItem]] = {}
    for item in items:
        finished = by_config.setdefault(item.config_name, [])
        if item.name not in failed:
            finished.append(item)
    found = {name: _Answers.of(own) for name, own in by_config.items() if own}
    found = {name: answers for name, answers in found.items() if answers.rows}
    configs = {}
    for name, answers in found.items():
        judged, cases = answers.judged(answers.task, [*answers.rows])
        configs[name] = over_runs(cases, judged.runs, judged.patients)
    paired: dict[str, Mapping[str, PairedRuns]] = {}
    apart: dict[str, str] = {}
    less, *others = by_config or [""]
    for name in others:
        if less not in found or name not in found:
            apart[name] = f"no run of {less if less not in found else name} was finished"
            continue
        first, other = found[less], found[name]
        if question(other.task, other.unit) != question(first.task, first.unit):
            apart[name] = "it answers another question"
        elif not (shared := [one for one in other.rows if one in first.rows]):
            apart[name] = "the two have no answers of one round and seed"
        else:
            paired[name] = _paired(other, first, shared)
    return StudyTables(configs=configs, less=less, differences=_corrected(paired, less=less), apart=apart)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Answers:
    """What the runs of a config, named "<round>/seed-<n>", said of their test splits: `rows` by run and unit.

    `tasks` are those of the runs, which decide at thresholds of their own validation split; `learned` counts the units that a
    run learned from.
    """

    tasks: Mapping[str, Task]
    unit: BagUnit
    learned: Mapping[str, int]
    rows: Mapping[tuple[str, str], Row]

    @classmethod
    def of(cls, items: Sequence[WorkItem]) -> Self:
        tasks, learned, rows = {}, {}, {}
        for item in items:
            run, model = item.run_name, load_decided(item.out)[0]
            tasks[run] = model.task
            learned[run] = cast(Mapping[str, int], model.training["slides"])["train"]
            for row in read_table(item.out, task=model.task, bag=model.bag, answered_by=model.answers):
                if row.split == "test" and row.values is not None:
                    rows[run, row.slide_id] = row
        return cls(tasks=tasks, unit=model.bag, learned=learned, rows=rows)

    @property
    def task(self) -> Task:
        """The task whose answers all runs give."""
        return shared_task([*self.tasks.values()])

    def judged(self, task: Task, units: Sequence[tuple[str, str]]) -> tuple[Judged, Cases]:
        """Rows of these runs and units as answers to `task`."""
        rows = [self.rows[one] for one in units]
        values = [row.values for row in rows if row.values is not None]
        columns = {run: answer_columns(own, task) for run, own in self.tasks.items()}
        judged = Judged(
            task=task, slide_ids=tuple(unit for _, unit in units), patients=tuple(row.patient_id for row in rows),
            runs=tuple(run for run, _ in units), labels=tuple(row.label for row in rows),
            values=np.stack([own[columns[run]] for own, (run, _) in zip(values, units, strict=True)]),
        )  # fmt: skip
        at = {run: own.decides_at for run, own in self.tasks.items()}
        return judged, judged.cases(at if task.decides_at else None)


def _paired(ours: _Answers, first: _Answers, units: Sequence[tuple[str, str]]) -> Mapping[str, PairedRuns]:
    task = shared_task([ours.task, first.task])
    (judged, cases), (_, others) = ours.judged(task, units), first.judged(task, units)
    rounds = {run: run.rpartition("/")[0] for run in judged.runs}
    test_share = len(judged) / sum(ours.learned[run] for run in rounds)
    return between_runs(cases, others, judged.runs, judged.patients, rounds=rounds, test_share=test_share)


def _corrected(paired: Mapping[str, Mapping[str, PairedRuns]], *, less: str) -> tuple[ConfigDifference, ...]:
    """Differences of configs by name, each metric's p-values corrected for how many configs there are."""
    corrected: dict[tuple[str, str, bool], float] = {}
    for retrained in (False, True):
        p_values: dict[str, dict[str, float]] = {}
        for name, found in paired.items():
            for metric, one in found.items():
                of = one.retrained if retrained else one.difference
                if of is not None and of.p_value is not None:
                    p_values.setdefault(metric, {})[name] = of.p_value
        for metric, known in p_values.items():
            for name, p_value in zip(known, holm([*known.values()]), strict=True):
                corrected[name, metric, retrained] = p_value
    return tuple(
        ConfigDifference(
            config=name, less=less, metric=metric, paired=one, p_holm=corrected.get((name, metric, False)),
            retrained_p_holm=corrected.get((name, metric, True)),
        )
        for name, found in paired.items() for metric, one in found.items()
    )  # fmt: skip


def _write_failures(path: Path, failures: Mapping[str, str]) -> None:
    path.unlink(missing_ok=True)
    if failures:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([("run", "reason"), *failures.items()])
        write_text(path, text.getvalue())


def _json(configs: Mapping[str, Mapping[str, RunSpread]]) -> dict[str, dict[str, object]]:
    return {name: {metric: asdict(spread) for metric, spread in found.items()} for name, found in configs.items()}


def _csv(configs: Mapping[str, Mapping[str, RunSpread]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    kinds = ("averaged", "pooled")
    writer.writerow(
        ["config", "metric", "runs", "mean", "sd", "least", "most"]
        + [f"{kind}{part}" for kind in kinds for part in ("", "_low", "_high")]
    )
    for name, found in configs.items():
        for metric, spread in found.items():
            estimates = [getattr(spread, kind) for kind in kinds]
            numbers = [part for one in estimates for part in (one.value, one.low, one.high)]
            row = [spread.mean, spread.sd, spread.least, spread.most, *numbers]
            writer.writerow([name, metric, spread.runs, *("" if v is None else f"{v:.9g}" for v in row)])
    return text.getvalue()


def _differences_csv(tables: StudyTables) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    ends = ("low", "high", "p_value", "p_holm")
    numbers = ("mean", "mean_of_less", "difference", *ends, *(f"retrained_{end}" for end in ends))
    writer.writerow(("config", "less", "metric", "runs", "rounds", *numbers, "status"))
    for one in tables.differences:
        paired, of, anew = one.paired, one.paired.difference, one.paired.retrained
        row = [of.first, of.second, of.difference, of.low, of.high, of.p_value, one.p_holm]
        row += [None] * 3 if anew is None else [anew.low, anew.high, anew.p_value]
        cells = ("" if v is None else f"{v:.9g}" for v in [*row, one.retrained_p_holm])
        writer.writerow([one.config, one.less, one.metric, paired.runs, paired.rounds, *cells, "ok"])
    for name, reason in tables.apart.items():
        writer.writerow([name, tables.less, *[""] * (3 + len(numbers)), reason])
    return text.getvalue()
