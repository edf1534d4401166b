"""crossval: all rounds of a study × seeds × configs, each run a folder of `wsimil train`, and a summary over them."""

from __future__ import annotations

import csv
import io
import multiprocessing
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from wsimil.cohort import Cohort
from wsimil.errors import ConfigError, ModelError, WsimilError
from wsimil.files import check_writable, write_text
from wsimil.mil.facts import FACTS, ModelFacts, read_facts
from wsimil.provenance import Provenance
from wsimil.stages.interrupt import interrupt
from wsimil.stages.learned import ORIGIN
from wsimil.stages.occupied import occupied
from wsimil.stages.progress import Quiet, Reporter
from wsimil.stages.run_folder import refuse_failures
from wsimil.stages.study_summary import StudyTables, sum_up
from wsimil.stages.train import plan, train
from wsimil.stages.work_items import STUDY, WorkItem, study_text

_INTERRUPTED = "interrupted"
_REPLACED = (
    "the cohort file or the model of fit.warm_start was replaced while the study ran: restore it, or choose another output"
    " folder"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class StudySummary:
    """How a study went: runs done now and before, reasons of those that failed, and the tables of the others."""

    done: tuple[str, ...]
    before: tuple[str, ...]
    failures: Mapping[str, str]
    tables: StudyTables


def crossval(
    items: Sequence[WorkItem], out: Path, *, workers: int = 1, reporter: Reporter | None = None
) -> StudySummary:
    """Train every run that is not done, `workers` at a time in processes of their own, and sum up; a rerun does the rest.

    A run that fails is recorded in failures.csv and the others go on; so does one that learned from other features than there
    are now. Writes study.json and the tables of `sum_up` into `out`, and what `train` writes into the folder of each run. Threads
    and the cache of features are shared out among workers. Raises WsimilError where no run could start or another process is at
    work in `out`, KeyboardInterrupt once running ones have written their checkpoints.
    """
    reporter = reporter or Quiet()
    if not items:
        raise ConfigError("a study without runs")
    refuse_failures(out, of=(ORIGIN,))
    with occupied(out):
        check_writable(out)
        contents = refuse_untrainable(items)
        items = [replace(item, contents=contents[item.config_name]) for item in items]
        before = [item for item in items if item.is_done()]
        open_items = [item for item in items if item not in before]
        for item in open_items:
            write_text(item.config_file, item.config.to_yaml())
        write_text(out / STUDY, study_text(items, out))
        reporter.begin("runs", len(open_items))
        failures: dict[str, str] = {}
        with TrainingPool(workers) as pool:
            for item, reason in pool.outcomes(open_items):
                if reason is not None:
                    failures[item.name] = reason
                reporter.finish_item(f"{item.name}: {'done' if reason is None else 'failed: ' + reason}")
        replaced = [item.name for item in items if item.name not in failures and not item.is_done()]
        failures |= dict.fromkeys(replaced, _REPLACED)
        tables = sum_up(items, failures, out)
    return StudySummary(
        done=tuple(item.name for item in open_items if item.name not in failures),
        before=tuple(item.name for item in before if item.name not in failures),
        failures=failures,
        tables=tables,
    )


def refuse_untrainable(items: Sequence[WorkItem]) -> dict[str, str]:
    """A digest of what the features hold, by config. Raises WsimilError where the runs of a config could not start, also where
    the study was made of features of another kind, of another cohort or of other splits."""
    contents = {}
    for name in dict.fromkeys(item.config_name for item in items):
        own = [item for item in items if item.config_name == name]
        item = next((one for one in own if (one.out / FACTS).is_file()), own[0])
        try:
            planned = plan(item.config, item.features, item.cohort)
        except WsimilError as error:
            raise type(error)(f"config {name}: {error}") from None
        contents[name] = planned.contents
        _refuse_other_cohort(item, planned.cohort)
        for one in own:
            _refuse_other_kind(one, planned.kind)
    return contents


def _refuse_other_kind(item: WorkItem, kind: Provenance) -> None:
    """Raises ConfigError where its folder holds a run that learned from features of another kind: each of them would fail."""
    with suppress(ModelError):  # there is none, or a broken one, which fails by itself
        made_of = ModelFacts.of(read_facts(item.out), str(item.out)).features
        if made_of is not None and (differences := made_of.kind_differences(kind)):
            raise ConfigError(
                f"{item.out} learned from features of another kind than those in {item.features} (run != features):"
                f" {'; '.join(differences)}; give the features that the study was made of, or choose another output folder"
            )


def _refuse_other_cohort(item: WorkItem, cohort: Cohort) -> None:
    """Raises ConfigError where its folder holds a run of another cohort or other splits: all of the study would fail."""
    with suppress(FileNotFoundError):
        learned = list(csv.DictReader(io.StringIO((item.out / "cohort.csv").read_text(encoding="utf-8"))))
        now = {row["slide_id"]: row for row in csv.DictReader(io.StringIO(cohort.to_csv()))}
        then = {
            row["slide_id"]: {name: cell for name, cell in row.items() if name != "slide_digest"} for row in learned
        }
        if other := next((one for one in sorted({*now, *then}) if now.get(one) != then.get(one)), None):
            was, is_now = (
                ", ".join(row.values()) if (row := table.get(other)) else "not there" for table in (then, now)
            )
            raise ConfigError(
                f"{item.out} learned from another cohort or other splits: of slide {other!r} the line was {was!r} and is"
                f" {is_now!r}; restore {item.cohort} and the splits, or choose another output folder"
            )


class TrainingPool:
    """Processes that train `workers` runs at a time, and stay for further ones, as each takes seconds to start."""

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def outcomes(self, items: Sequence[WorkItem]) -> Iterator[tuple[WorkItem, str | None]]:
        """Train items: each with the reason why it failed, or None, as they end. Once this ends, none of them is at work."""
        left = list(items)
        if self._pool is None:
            self._pool = _processes(min(self._workers, max(len(items), 1)), self._workers)
        try:
            for item, reason in _trained(self._pool, items, self._workers):
                left.remove(item)
                yield item, reason
        except BrokenProcessPool:
            self._close()
            yield from _one_by_one(left, self._workers)

    def _close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None


def _one_by_one(items: Sequence[WorkItem], share: int) -> Iterator[tuple[WorkItem, str | None]]:
    """One of those that ran took the pool down: alone, each tells whether it was the one."""
    for item in items:
        with _processes(1, share) as pool:
            try:
                yield from _trained(pool, [item], share)
            except BrokenProcessPool:
                yield item, "its process died, as one does that runs out of memory; run it alone, or with smaller bags"


def _processes(count: int, share: int) -> ProcessPoolExecutor:
    spawning = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(count, mp_context=spawning, initializer=_share_threads, initargs=(share,))


def _trained(pool: ProcessPoolExecutor, items: Sequence[WorkItem], share: int) -> Iterator[tuple[WorkItem, str | None]]:
    futures: dict[Future[str | None], WorkItem] = {pool.submit(_train, item, share): item for item in items}
    try:
        for future in as_completed(futures):
            reason = future.result()
            if reason == _INTERRUPTED:
                raise KeyboardInterrupt
            yield futures[future], reason
            interrupt.check()
    finally:
        for future in futures:
            future.cancel()
        wait(futures)


def _share_threads(workers: int) -> None:
    import torch

    torch.set_num_threads(max(1, torch.get_num_threads() // workers))


def _train(item: WorkItem, share: int) -> str | None:
    """Train in a process of a pool; the reason of a failure as text, as not all errors cross processes whole."""
    fit = item.config.fit
    config = item.config.model_copy(update={"fit": fit.model_copy(update={"cache_gb": fit.cache_gb / share})})
    try:
        made = item.made_of()
        with interrupt.remembered():
            summary = train(config, item.features, item.cohort, item.out)
    except KeyboardInterrupt:
        return _INTERRUPTED
    except WsimilError as error:
        return str(error)
    except (RuntimeError, MemoryError) as error:  # what torch raises where memory runs out
        return f"{type(error).__name__}: {error}"
    if item.contents not in ("", summary.contents):
        return f"features in {item.features} were replaced while the study ran: restore them, or choose another output folder"
    item.mark_done(made, contents=summary.contents)
    return None
