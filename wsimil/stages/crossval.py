"""crossval: all rounds of a study × seeds × configs, each run a folder of `wsimil train`, and a summary over them."""

from __future__ import annotations

import csv
import io
import json
import multiprocessing
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np
import pandas as pd

from wsimil.errors import ConfigError, WsimilError
from wsimil.evaluation.decision import load_decided
from wsimil.evaluation.groups import RunSpread, over_runs
from wsimil.evaluation.judgement import Judged
from wsimil.files import check_writable, write_text
from wsimil.provenance import sha256_json
from wsimil.splits import read_plan
from wsimil.stages.interrupt import interrupt
from wsimil.stages.progress import Quiet, Reporter
from wsimil.stages.train import TrainConfig, plan, train

_DONE = "done.json"
_INTERRUPTED = "interrupted"


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkItem:
    """One run of a study: `name` is "<config>/<round>/seed-<n>", and its folder below that of the study."""

    name: str
    config: TrainConfig
    features: Path
    cohort: Path
    out: Path

    @property
    def config_file(self) -> Path:
        """Where the config of the run is written before it starts."""
        return self.out.with_name(f"{self.out.name}.yaml")

    def command(self) -> list[str]:
        """The same run as a command line, for whoever starts it elsewhere."""
        paths = (str(self.features), "--cohort", str(self.cohort), "-o", str(self.out), "-c", str(self.config_file))
        return ["wsimil", "train", *paths]

    def digest(self) -> str:
        """What a finished run must have been made of to be left as it is."""
        return sha256_json(
            {
                "config": self.config.model_dump(mode="json"),
                "cohort": sha256(self.cohort.read_bytes()).hexdigest(),
                "features": str(self.features.resolve()),
            }
        )

    def mark_done(self) -> None:
        """Leave it as it is from now on. Raises OutputError."""
        write_text(self.out / _DONE, json.dumps({"digest": self.digest()}) + "\n")

    def is_done(self) -> bool:
        """Whether its folder holds this very run, finished."""
        try:
            said = json.loads((self.out / _DONE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return False
        return isinstance(said, dict) and said.get("digest") == self.digest()


@dataclass(frozen=True, slots=True, kw_only=True)
class StudySummary:
    """How a study went: runs done now and before, reasons of those that failed, and metrics of each config over its runs."""

    done: tuple[str, ...]
    before: tuple[str, ...]
    failures: Mapping[str, str]
    configs: Mapping[str, Mapping[str, RunSpread]]


def work_items(
    configs: Mapping[str, TrainConfig],
    features: Path,
    cohort: Path,
    out: Path,
    *,
    splits: Path,
    rounds: Sequence[str] = (),
    seeds: Sequence[int] = (0,),
) -> list[WorkItem]:
    """The runs of a study, rounds that have a test split unless `rounds` names some; configs of a round and seed side by side.

    Raises ConfigError for names that make no folder, a config with splits of its own, CohortError for broken splits.
    """
    plan_of = read_plan(splits)
    chosen = [plan_of.round(name).name for name in rounds] or [one.name for one in plan_of.rounds if one.test]
    if not chosen:
        raise ConfigError(f"{splits}: no round has a test split; name rounds with --round")
    items = []
    for name, config in configs.items():
        if config.split.model_fields_set:
            raise ConfigError(f"config {name}: holds a split section; a study takes its splits from {splits} alone")
    for one in chosen:
        for seed in dict.fromkeys(seeds):
            for name, config in configs.items():
                split = config.split.model_copy(
                    update={"file": splits.resolve(), "round": one, "digest": plan_of.digest}
                )
                fit = config.fit.model_copy(update={"seed": seed})
                items.append(
                    WorkItem(
                        name=f"{name}/{one}/seed-{seed}",
                        config=config.model_copy(update={"split": split, "fit": fit}),
                        features=features,
                        cohort=cohort,
                        out=out / name / one / f"seed-{seed}",
                    )
                )
    return items


def crossval(
    items: Sequence[WorkItem], out: Path, *, workers: int = 1, reporter: Reporter | None = None
) -> StudySummary:
    """Train every run that is not done, `workers` at a time in processes of their own, and sum up; a rerun does the rest.

    A run that fails is recorded in failures.csv and the others go on. Writes study.json, summary.json and summary.csv into `out`,
    and what `train` writes into the folder of each run. Threads and the cache of features are shared out
    among workers. Raises
    WsimilError where no run could start, KeyboardInterrupt once running ones have written their checkpoints.
    """
    reporter = reporter or Quiet()
    check_writable(out)
    if not items:
        raise ConfigError("a study without runs")
    for name, item in {item.name.split("/")[0]: item for item in items}.items():
        try:
            plan(item.config, item.features, item.cohort)
        except WsimilError as error:
            raise type(error)(f"config {name}: {error}") from None
    before = [item for item in items if item.is_done()]
    open_items = [item for item in items if item not in before]
    for item in open_items:
        write_text(item.config_file, item.config.to_yaml())
    write_text(out / "study.json", study_text(items, out))
    reporter.begin("runs", len(open_items))
    failures: dict[str, str] = {}
    for item, reason in outcomes(open_items, workers):
        if reason is not None:
            failures[item.name] = reason
        reporter.finish_item(f"{item.name}: {'done' if reason is None else 'failed: ' + reason}")
    configs = sum_up(items, failures, out)
    return StudySummary(
        done=tuple(item.name for item in open_items if item.name not in failures),
        before=tuple(item.name for item in before),
        failures=failures,
        configs=configs,
    )


def study_text(items: Sequence[WorkItem], out: Path) -> str:
    """What study.json in `out` says: each run with its folder and command."""
    study = [{"name": item.name, "out": str(item.out.relative_to(out)), "command": item.command()} for item in items]
    return json.dumps(study, indent=1) + "\n"


def sum_up(items: Sequence[WorkItem], failures: Mapping[str, str], out: Path) -> Mapping[str, Mapping[str, RunSpread]]:
    """Metrics of each config over the runs that did not fail, written as summary.json and .csv beside failures.csv."""
    _write_failures(out / "failures.csv", failures)
    configs = summarized([item for item in items if item.name not in failures])
    write_text(out / "summary.json", json.dumps(_json(configs), indent=1) + "\n")
    write_text(out / "summary.csv", _csv(configs))
    return configs


def summarized(items: Sequence[WorkItem]) -> dict[str, dict[str, RunSpread]]:
    """Metrics of the test split of each config over its runs, all of them finished."""
    found: dict[str, dict[str, RunSpread]] = {}
    for name in dict.fromkeys(item.name.split("/")[0] for item in items):
        own = [item for item in items if item.name.split("/")[0] == name]
        models = [load_decided(item.out)[0] for item in own]
        tasks, units = [model.task for model in models], [model.bag for model in models]
        tables = []
        for item in own:
            table = pd.read_parquet(item.out / "predictions.parquet")
            table = table[(table["split"] == "test") & (table["status"] == "ok")]
            tables.append(table.assign(run=item.name))
        whole = pd.concat(tables, ignore_index=True)
        if len(whole):
            judged = Judged(
                task=tasks[0], slide_ids=tuple(whole[f"{units[0]}_id"]), patients=tuple(whole["patient_id"]),
                runs=tuple(whole["run"]), labels=tuple(whole["label"]),
                values=whole[[column.name for column in tasks[0].answers]].to_numpy(np.float64),
            )  # fmt: skip
            # Each run decides at the thresholds of its own validation split.
            at = {item.name: task.decides_at for item, task in zip(own, tasks, strict=True)}
            cases = judged.cases(at if tasks[0].decides_at else None)
            found[name] = over_runs(cases, judged.runs, judged.patients)
    return found


def outcomes(items: Sequence[WorkItem], workers: int) -> Iterator[tuple[WorkItem, str | None]]:
    """Train items, `workers` at a time in processes of their own: each with the reason why it failed, or None, as they end."""
    left = list(items)
    try:
        for item, reason in _pooled(left, workers, workers):
            left.remove(item)
            yield item, reason
    except BrokenProcessPool:
        yield from _one_by_one(left, workers)


def _one_by_one(items: Sequence[WorkItem], share: int) -> Iterator[tuple[WorkItem, str | None]]:
    """One of those that ran took the pool down: alone, each tells whether it was the one."""
    for item in items:
        try:
            yield from _pooled([item], 1, share)
        except BrokenProcessPool:
            yield item, "its process died, as one does that runs out of memory; run it alone, or with smaller bags"


def _pooled(items: Sequence[WorkItem], processes: int, share: int) -> Iterator[tuple[WorkItem, str | None]]:
    pool = ProcessPoolExecutor(
        min(processes, max(len(items), 1)),
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_share_threads,
        initargs=(share,),
    )
    try:
        futures: dict[Future[str | None], WorkItem] = {pool.submit(_train, item, share): item for item in items}
        for future in as_completed(futures):
            reason = future.result()
            if reason == _INTERRUPTED:
                raise KeyboardInterrupt
            yield futures.pop(future), reason
            interrupt.check()
    finally:
        pool.shutdown(cancel_futures=True)


def _share_threads(workers: int) -> None:
    import torch

    torch.set_num_threads(max(1, torch.get_num_threads() // workers))


def _train(item: WorkItem, share: int) -> str | None:
    """Train in a process of a pool; the reason of a failure as text, as not all errors cross processes whole."""
    fit = item.config.fit
    config = item.config.model_copy(update={"fit": fit.model_copy(update={"cache_gb": fit.cache_gb / share})})
    try:
        with interrupt.remembered():
            train(config, item.features, item.cohort, item.out)
    except KeyboardInterrupt:
        return _INTERRUPTED
    except WsimilError as error:
        return str(error)
    except (RuntimeError, MemoryError) as error:  # what torch raises where memory runs out
        return f"{type(error).__name__}: {error}"
    item.mark_done()
    return None


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
