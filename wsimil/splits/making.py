"""Plans that are drawn: folds, repeated or nested, random draws, and tests on slides from elsewhere."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Literal

import numpy as np
from pydantic import Field

from wsimil.cohort import Cohort
from wsimil.config import FrozenConfig
from wsimil.drawing import draw_folds, draw_fraction, refuse_few
from wsimil.errors import CohortError, ConfigError
from wsimil.splits.plan import Round, SplitPlan
from wsimil.splits.sites import site_folds
from wsimil.targets import refuse_alike
from wsimil.targets.config import TaskConfig


class SplitsConfig(FrozenConfig):
    """How splits are drawn, always by patient, and evenly over what the task tells apart.

    `kind`: "kfold", each of `folds` being the test split once, `repeats` times anew; "nested", as kfold, and for each fold the
    rest in `inner_folds`, each being the validation split once, for choices that must not see the test fold; "monte_carlo",
    `repeats` draws of `test_fraction`; "external", which tests on the sites `external`, or on what the split column calls test,
    and has each of `folds` of the rest as the validation split once; "column", the fold or split column of the cohort.
    `val_fraction` and `test_fraction` are shares of all patients. `preserve_sites`: the test folds are of whole sites.
    `task`: what is to be learned, and in which columns it stands.
    """

    kind: Literal["kfold", "nested", "monte_carlo", "external", "column"] = "kfold"
    folds: int = Field(5, ge=2)
    repeats: int = Field(1, ge=1)
    inner_folds: int = Field(4, ge=2)
    val_fraction: float = Field(0.15, gt=0, lt=0.9)
    test_fraction: float = Field(0.2, gt=0, lt=0.9)
    preserve_sites: bool = False
    external: tuple[str, ...] = ()
    seed: int = Field(0, ge=0)
    task: TaskConfig = TaskConfig()


def make_plan(cohort: Cohort, config: SplitsConfig) -> SplitPlan:
    """Draw a plan. Raises CohortError where a class or the sites do not suffice, ConfigError for options that mean nothing."""
    _refuse_idle_options(config)
    if config.kind not in ("column", "external") and any(s.split or s.fold is not None for s in cohort.slides):
        raise CohortError(
            f"the cohort has splits of its own in its split or fold column; take them with kind column (or external), or drop the"
            f" column to draw {config.kind}"
        )
    rounds = tuple(_ROUNDS[config.kind](cohort, config))
    slides = {slide.slide_id: (slide.patient_id, slide.label) for slide in cohort.slides}
    return SplitPlan(kind=config.kind, made=config.model_dump(mode="json"), slides=slides, rounds=rounds)


def with_val(cohort: Cohort, patients: Iterable[str], fraction: float, rng: np.random.Generator) -> set[str]:
    """Patients of `patients` drawn as the validation split: `fraction` of all patients of the cohort, half of these at most.

    Raises CohortError where none can be spared.
    """
    among = set(patients)
    strata = {patient: stratum for patient, stratum in cohort.strata().items() if patient in among}
    share = fraction * len(cohort.patients) / max(len(strata), 1)
    drawn = draw_fraction(strata, min(share, 0.5), rng, "val", classes=bool(cohort.classes))
    if not drawn:
        raise CohortError(
            f"none of the {len(strata)} patients that are not tested on can be spared for the val split, as no two of them are"
            " alike; ask for a smaller test split, or add patients"
        )
    return drawn


def round_of(name: str, cohort: Cohort, *, val: set[str], test: set[str], out: frozenset[str] = frozenset()) -> Round:
    """A round by patients; who is in none of `val`, `test`, `out` is learned from."""
    sides: dict[str, list[str]] = defaultdict(list)
    for slide in cohort.slides:
        patient = slide.patient_id
        if patient not in out:
            sides["test" if patient in test else "val" if patient in val else "train"].append(slide.slide_id)
    return (
        Round(name=name, **{side: tuple(sorted(ids)) for side, ids in sides.items()})
        if "train" in sides
        else _empty(name)
    )


def _empty(name: str) -> Round:
    raise CohortError(f"round {name}: no patient is left to learn from; ask for smaller val and test splits")


def _test_folds(cohort: Cohort, config: SplitsConfig, repeat: int) -> list[set[str]]:
    strata, rng = cohort.strata(), np.random.default_rng([config.seed, repeat, 0])
    if config.preserve_sites:
        return site_folds(_sites(cohort), strata, config.folds, rng)
    _refuse_few(cohort, strata, config.folds)
    return draw_folds(strata, config.folds, rng)


def _kfold(cohort: Cohort, config: SplitsConfig) -> Iterator[Round]:
    for repeat in range(config.repeats):
        for fold, test in enumerate(_test_folds(cohort, config, repeat)):
            rng = np.random.default_rng([config.seed, repeat, fold, 1])
            val = with_val(cohort, set(cohort.patients) - test, config.val_fraction, rng)
            yield round_of(f"{repeat}.{fold}" if config.repeats > 1 else str(fold), cohort, val=val, test=test)


def _nested(cohort: Cohort, config: SplitsConfig) -> Iterator[Round]:
    outer = list(_kfold(cohort, config))
    owner, strata = {s.slide_id: s.patient_id for s in cohort.slides}, cohort.strata()
    for fold, one in enumerate(outer):
        yield one
        test = {owner[slide_id] for slide_id in one.test}
        rest = {patient: stratum for patient, stratum in strata.items() if patient not in test}
        _refuse_few(cohort, rest, config.inner_folds)
        inner = draw_folds(rest, config.inner_folds, np.random.default_rng([config.seed, fold, 2]))
        for number, val in enumerate(inner):
            yield round_of(f"{one.name}.{number}", cohort, val=val, test=set(), out=frozenset(test))


def _monte_carlo(cohort: Cohort, config: SplitsConfig) -> Iterator[Round]:
    for repeat in range(config.repeats):
        rng = np.random.default_rng([config.seed, repeat, 0])
        test = draw_fraction(cohort.strata(), config.test_fraction, rng, "test", classes=bool(cohort.classes))
        val = with_val(cohort, set(cohort.patients) - test, config.val_fraction, rng)
        yield round_of(str(repeat), cohort, val=val, test=test)


def _external(cohort: Cohort, config: SplitsConfig) -> Iterator[Round]:
    if config.external:
        sites = _sites(cohort)
        unknown = sorted(set(config.external) - {site for names in sites.values() for site in names})
        if unknown:
            raise CohortError(f"no slide is of site {unknown[0]!r}, which external names")
        test = {patient for patient, names in sites.items() if set(names) & set(config.external)}
    else:
        test = {slide.patient_id for slide in cohort.slides if slide.split == "test"}
    if not test:
        raise CohortError("nothing to test on: name sites with external, or fill the cohort's split column with test")
    rest = {patient: stratum for patient, stratum in cohort.strata().items() if patient not in test}
    _refuse_few(cohort, rest, config.folds)
    for fold, val in enumerate(draw_folds(rest, config.folds, np.random.default_rng([config.seed, 0]))):
        yield round_of(str(fold), cohort, val=val, test=test)


def _column(cohort: Cohort, config: SplitsConfig) -> Iterator[Round]:
    numbers = sorted({slide.fold for slide in cohort.slides if slide.fold is not None})
    if not numbers and not any(slide.split for slide in cohort.slides):
        raise CohortError("the cohort has neither a fold nor a split column; choose another kind")
    for fold in numbers or [0]:
        drawn = cohort.with_splits(seed=config.seed, val_fraction=config.val_fraction, fold=fold)
        val, test = ({s.patient_id for s in drawn.slides if s.split == split} for split in ("val", "test"))
        yield round_of(str(fold), cohort, val=val, test=test)


_ROUNDS = {
    "kfold": _kfold,
    "nested": _nested,
    "monte_carlo": _monte_carlo,
    "external": _external,
    "column": _column,
}
_USED = {
    "kfold": ("folds", "repeats", "val_fraction", "preserve_sites", "seed"),
    "nested": ("folds", "inner_folds", "val_fraction", "preserve_sites", "seed"),
    "monte_carlo": ("repeats", "val_fraction", "test_fraction", "seed"),
    "external": ("folds", "external", "seed"),
    "column": ("val_fraction", "seed"),
}


def _refuse_idle_options(config: SplitsConfig) -> None:
    for name in config.model_fields_set - {"kind", "task", *_USED[config.kind]}:
        if getattr(config, name) != type(config).model_fields[name].default:
            raise ConfigError(f"{name}: means nothing for kind {config.kind}; it uses {', '.join(_USED[config.kind])}")


def _sites(cohort: Cohort) -> dict[str, list[str]]:
    try:
        refuse_alike((slide.site for slide in cohort.slides if slide.site), "sites")
    except ValueError as error:
        raise CohortError(str(error)) from None
    found: dict[str, list[str]] = defaultdict(list)
    for slide in cohort.slides:
        found[slide.patient_id].append(slide.site or "")
    return found


def _refuse_few(cohort: Cohort, strata: Mapping[str, str], folds: int) -> None:
    """Each fold is to hold every class; strata of other tasks are kept even as far as they go, and may be smaller."""
    for stratum in sorted(set(strata.values())) if cohort.classes else ():
        count = sum(one == stratum for one in strata.values())
        refuse_few(repr(stratum), count, folds)
    if strata:  # without, a round says that there is nobody to learn from
        who = "the cohort" if len(strata) == len(cohort.patients) else "the rest of the cohort"
        refuse_few(who, len(strata), folds)
