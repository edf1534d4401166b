"""splits: a cohort to a file of splits, and the question whether such a file still holds for a cohort and its features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from wsimil.cohort import Cohort, read_cohort
from wsimil.errors import ConfigError
from wsimil.files import check_writable
from wsimil.splits import SplitPlan, SplitsConfig, make_plan, read_plan, read_published, write_plan
from wsimil.stages.cohort_features import match
from wsimil.stages.features import open_features
from wsimil.targets.config import TaskConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitsSummary:
    """A plan, the cohort that it is for, and whether contents of slides were compared too."""

    plan: SplitPlan
    cohort: Cohort
    compared_contents: bool


def make(
    config: SplitsConfig,
    cohort_csv: Path,
    out: Path,
    *,
    features: Path | None = None,
    published: Sequence[Path] = (),
    overwrite: bool = False,
) -> SplitsSummary:
    """Draw splits for `cohort_csv`, or read published ones, and write them to `out`, a JSON file.

    With `features`, only slides that have some are dealt, and slides of one content under two names are refused across sides.
    Raises CohortError, ConfigError, StoreError, OutputError.
    """
    if out.exists() and not overwrite:
        raise ConfigError(
            f"{out} exists: splits are made once, and every run is held against them; choose another name, or --overwrite"
        )
    if out.suffix != ".json":
        raise ConfigError(f"--out {out}: the name of a splits file ends in .json")
    check_writable(out.parent)
    cohort, contents = _cohort(cohort_csv, config.task, features)
    if published:
        plan = read_published(published, cohort, val_fraction=config.val_fraction, seed=config.seed)
    else:
        plan = make_plan(cohort, config)
    plan.refuse_twins(contents)
    for one in plan.rounds:
        plan.in_round(cohort, one.name)
    write_plan(out, plan)
    return SplitsSummary(plan=plan, cohort=cohort, compared_contents=features is not None)


def check(splits: Path, cohort_csv: Path, *, task: TaskConfig, features: Path | None = None) -> SplitsSummary:
    """Hold a splits file against a cohort, and against the contents of its slides. Raises CohortError with the names."""
    plan = read_plan(splits)
    cohort, contents = _cohort(cohort_csv, task, features)
    plan.refuse_twins(contents)
    for one in plan.rounds:
        plan.in_round(cohort, one.name)
    return SplitsSummary(plan=plan, cohort=cohort, compared_contents=features is not None)


def _cohort(cohort_csv: Path, task: TaskConfig, features: Path | None) -> tuple[Cohort, dict[str, str]]:
    cohort = read_cohort(cohort_csv, task=task.build())
    if features is None:
        return cohort, {}
    matched = match(cohort, open_features(features), where=features)
    return matched.cohort, dict(matched.digests)
