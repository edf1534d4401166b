"""The tables of a study: metrics of each config over its runs."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from wsimil.evaluation.decision import load_decided
from wsimil.evaluation.judgement import Judged
from wsimil.evaluation.runs import RunSpread, over_runs
from wsimil.files import write_text
from wsimil.stages.answered import shared_task
from wsimil.stages.work_items import WorkItem


def sum_up(items: Sequence[WorkItem], failures: Mapping[str, str], out: Path) -> Mapping[str, Mapping[str, RunSpread]]:
    """Metrics of each config over the runs that did not fail, written as summary.json and .csv beside failures.csv."""
    _write_failures(out / "failures.csv", failures)
    configs = summarized([item for item in items if item.name not in failures])
    write_text(out / "summary.json", json.dumps(_json(configs), indent=1) + "\n")
    write_text(out / "summary.csv", _csv(configs))
    return configs


def summarized(items: Sequence[WorkItem]) -> dict[str, dict[str, RunSpread]]:
    """Metrics of the test split of each config over its runs, all of them finished."""
    import pandas as pd

    found: dict[str, dict[str, RunSpread]] = {}
    for name in dict.fromkeys(item.name.split("/")[0] for item in items):
        own = [item for item in items if item.name.split("/")[0] == name]
        models = [load_decided(item.out)[0] for item in own]
        task, unit = shared_task([model.task for model in models]), models[0].bag
        tables = []
        for item in own:
            table = pd.read_parquet(item.out / "predictions.parquet")
            table = table[(table["split"] == "test") & (table["status"] == "ok")]
            tables.append(table.assign(run=item.name))
        whole = pd.concat(tables, ignore_index=True)
        if len(whole):
            judged = Judged(
                task=task, slide_ids=tuple(whole[f"{unit}_id"]), patients=tuple(whole["patient_id"]),
                runs=tuple(whole["run"]), labels=tuple(whole["label"]),
                values=whole[[column.name for column in task.answers]].to_numpy(np.float64),
            )  # fmt: skip
            # Each run decides at the thresholds of its own validation split.
            at = {item.name: model.task.decides_at for item, model in zip(own, models, strict=True)}
            cases = judged.cases(at if task.decides_at else None)
            found[name] = over_runs(cases, judged.runs, judged.patients)
    return found


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
