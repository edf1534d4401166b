"""Slides, patients, labels and splits; no patient in two splits, and nothing dropped without a line that says so."""

from __future__ import annotations

import csv
import io
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Literal, TypeAlias, get_args

import numpy as np

from wsimil.drawing import draw_folds, draw_fraction, refuse_few
from wsimil.errors import CohortError
from wsimil.tables import Table, TableRow, read_table
from wsimil.targets import MISSING, Classification, Targets, Task, refuse_alike

Split: TypeAlias = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)

BagUnit: TypeAlias = Literal["slide", "patient"]

_IDS = ("slide_id", "patient_id")
_BY_CLASS = Classification()


@dataclass(frozen=True, slots=True, kw_only=True)
class CohortSlide:
    """One row: a slide, whose it is, and what is known of it; `label` is the task's target as text, `fold` counts from 0.

    Where a bag holds all slides of a patient, a row is a patient under both ids, and `members` are the slides.
    """

    slide_id: str
    patient_id: str
    label: str
    site: str | None = None
    split: Split | None = None
    fold: int | None = None
    members: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """A counted line of the cohort table: what was set aside or repaired, and which slides or patients."""

    what: str
    slide_ids: tuple[str, ...]

    def __str__(self) -> str:
        return f"{len(self.slide_ids)} {self.what}: {_some(self.slide_ids)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Cohort:
    """The labelled slides of a study, in the order of their file, and the task that their labels belong to.

    `classes` are those of a classification, at least two, and empty for other tasks; where they are given alone the task is that.
    Raises CohortError for duplicate ids, labels that do not fit the task, one class only, a patient in two splits or folds, or
    ids that `refuse_alike` takes for one.
    """

    slides: tuple[CohortSlide, ...]
    classes: tuple[str, ...] = ()
    findings: tuple[Finding, ...] = ()
    task: Task = _BY_CLASS

    def __post_init__(self) -> None:
        _refuse_repeated([s.slide_id for s in self.slides])
        if isinstance(self.task, Classification):
            if not self.task.classes:
                object.__setattr__(self, "task", replace(self.task, classes=self.classes))
            if self.classes and self.classes != self.task.classes:
                raise CohortError(f"classes {list(self.classes)} are not those of the task, {list(self.task.classes)}")
            object.__setattr__(self, "classes", self.task.classes)
        try:
            self.task.refuse([s.label for s in self.slides])
            refuse_alike((s.patient_id for s in self.slides), "patient ids")
        except ValueError as error:
            raise CohortError(str(error)) from None
        _refuse_shared_patients(self.slides)

    @property
    def slide_ids(self) -> tuple[str, ...]:
        """Ids of all slides, in order."""
        return tuple(s.slide_id for s in self.slides)

    @property
    def patients(self) -> tuple[str, ...]:
        """Ids of all patients, sorted."""
        return tuple(sorted({s.patient_id for s in self.slides}))

    def targets(self, slides: Iterable[CohortSlide]) -> Targets:
        """The target of each slide as the task encodes it: of a classification class indices, int64 [n]."""
        return self.task.encode([s.label for s in slides])

    def of(self, split: Split) -> tuple[CohortSlide, ...]:
        """The slides of one split, in order."""
        return tuple(s for s in self.slides if s.split == split)

    def matched(self, feature_ids: Iterable[str], *, empty_ids: Iterable[str] = ()) -> Cohort:
        """Only slides that have features; what is missing on either side becomes a finding.

        `empty_ids` are slides whose feature file is valid and holds no tile.
        Raises CohortError where nothing, or only one class, is left.
        """
        available, empty = set(feature_ids), set(empty_ids)
        known = set(self.slide_ids)
        kept = tuple(s for s in self.slides if s.slide_id in available - empty)
        if not kept:
            raise CohortError(
                f"none of the {len(self.slides)} slides of the cohort has features; the cohort holds e.g."
                f" {_some(self.slide_ids, 2)}, the features e.g. {_some(sorted(available), 2)}: slide_id must equal the"
                " name of the feature file without its suffix"
            )
        findings = (
            *self.findings,
            *_finding("labelled slides have no features and are left out", sorted(known - available)),
            *_finding("feature files have no label and are left out", sorted(available - known)),
            *_finding("slides have no tissue tile and are left out", sorted(known & empty)),
        )
        lost = sorted(set(self.classes) - {s.label for s in kept})
        if lost:
            raise CohortError(
                f"no slide of class {lost} has features ({len(kept)} of {len(self.slides)} slides matched)"
            )
        return replace(self, slides=kept, findings=findings)

    def with_splits(
        self,
        *,
        seed: int,
        val_fraction: float = 0.15,
        test_fraction: float = 0.15,
        folds: int | None = None,
        fold: int = 0,
    ) -> Cohort:
        """Give every slide a split; splits and folds of the file are kept, what they leave open is drawn by patient.

        Without any in the file, patients are drawn at random within each class (a patient's class is the rarest label
        of its slides): into `folds` of equal size, fold number `fold` being the test split, or by `test_fraction`.
        `val_fraction` is the share of all patients; it is drawn from what is not test.
        Raises CohortError where a class has too few patients, where some slides have a split and others have none, where the
        file has both splits and folds, or where folds are asked for and the file has splits of its own.
        """
        slides = self.slides
        given = [s for s in slides if s.split is not None]
        in_folds = [s for s in slides if s.fold is not None]
        if given and in_folds:
            raise CohortError(
                "the file has a split column and a fold column, which draw the line twice; drop the one or the other"
            )
        if given and len(given) < len(slides):
            open_ids = [s.slide_id for s in slides if s.split is None]
            raise CohortError(
                f"the split column is empty for {len(open_ids)} slides: {_some(open_ids)}; fill all or none"
            )
        if given and (folds is not None or fold):
            raise CohortError(
                "folds were asked for, and the split column gives every slide its split already; drop the one or the other"
            )
        if in_folds and folds not in (None, len({s.fold for s in in_folds})):
            count = len({s.fold for s in in_folds})
            raise CohortError(f"{folds} folds were asked for, the fold column holds {count}; drop the one or the other")
        if fold and folds is None and not in_folds:
            raise CohortError(f"fold {fold} was asked for without a number of folds; set folds too")
        if given:
            splits: dict[str, Split] = {s.patient_id: s.split for s in given if s.split is not None}
        elif in_folds:
            splits = self._from_fold_column(fold)
        else:
            test = self._draw_test(seed, test_fraction, folds, fold)
            splits = {p: "test" if p in test else "train" for p in self.patients}
        findings = self.findings
        if "train" not in splits.values():
            raise CohortError("no slide is in the train split; give train, val and test in the split column")
        if "val" not in splits.values() and val_fraction > 0:
            rest = [p for p in self.patients if splits[p] == "train"]
            share = val_fraction * len(self.patients) / len(rest)
            strata = {p: s for p, s in self.strata().items() if splits[p] == "train"}
            rng = np.random.default_rng([seed, 1])
            drawn = draw_fraction(strata, min(share, 0.5), rng, "val", classes=bool(self.classes))
            splits.update(dict.fromkeys(drawn, "val"))
            if given or in_folds:
                moved = tuple(s.slide_id for s in slides if s.patient_id in drawn)
                findings = (*findings, *_finding("slides of the train split were drawn as the validation split", moved))
        slides = tuple(replace(s, split=splits[s.patient_id]) for s in slides)
        return replace(self, slides=slides, findings=findings).checked_splits()

    def checked_splits(self) -> Cohort:
        """The cohort, with a finding where a class is not in the test split. Raises CohortError where train or val lack one."""
        for split in SPLITS[:2]:
            if not self.of(split):
                raise CohortError(
                    f"no slide is in the {split} split; training needs slides to learn from and to be chosen on"
                )
            if lost := self._lost(split):
                raise CohortError(
                    f"the {split} split holds no slide of class {lost}; train and val need every class:"
                    " change the split column, the fractions or the seed"
                )
        if lost := self._lost("test"):
            what = f"slides are a test split without class {', '.join(lost)}, some metrics stay undefined"
            return replace(self, findings=(*self.findings, *_finding(what, [s.slide_id for s in self.of("test")])))
        return self

    def by_patient(self) -> Cohort:
        """One row a patient, in order of their first slides, whose members are sorted; the site is that of all slides or none.

        Raises CohortError for a patient whose slides have different labels.
        """
        _refuse_different_labels(self.slides)
        owned: dict[str, list[CohortSlide]] = defaultdict(list)
        for slide in self.slides:
            owned[slide.patient_id].append(slide)
        rows = []
        for patient, slides in owned.items():
            sites = {slide.site for slide in slides}
            rows.append(
                replace(
                    slides[0],
                    slide_id=patient,
                    site=slides[0].site if len(sites) == 1 else None,
                    members=tuple(sorted(slide.slide_id for slide in slides)),
                )
            )
        return replace(self, slides=tuple(rows))

    def renamed(self, name: Callable[[str], str]) -> Cohort:
        """The same with `name` of every id of a slide and a patient, in the order of names: that of ids would tell whose
        they are.
        """

        def ordered(ids: Iterable[str]) -> tuple[str, ...]:
            return tuple(sorted(map(name, ids)))

        slides = (
            replace(s, slide_id=name(s.slide_id), patient_id=name(s.patient_id), members=ordered(s.members))
            for s in self.slides
        )
        findings = tuple(replace(one, slide_ids=ordered(one.slide_ids)) for one in self.findings)
        return replace(self, slides=tuple(sorted(slides, key=lambda s: s.slide_id)), findings=findings)

    def to_csv(self, *, contents: Mapping[str, str] | None = None) -> str:
        """The cohort table: one line a slide, its split included; of patients also their slides, with semicolons; with
        `contents`, digests of what slides hold, also these."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        joined = any(s.members for s in self.slides)
        told = [] if contents is None else ["slide_digest"]
        writer.writerow([*_IDS, *self.task.columns, "site", "split", *(["slides"] if joined else []), *told])
        for s in self.slides:
            row = [s.slide_id, s.patient_id, *self.task.cells(s.label), s.site or "", s.split or ""]
            digest = [] if contents is None else [contents.get(s.slide_id, "")]
            writer.writerow([*row, *([";".join(s.members)] if joined else []), *digest])
        return text.getvalue()

    def counts(self) -> list[tuple[str, str, int, int]]:
        """(split, group, slides, patients) for every split in use and every group of the task, such as a class.

        Split "" where none is set; a slide of several labels counts to each.
        """
        rows: list[tuple[str, str, int, int]] = []
        for split in ("", *SPLITS):
            here = [s for s in self.slides if (s.split or "") == split]
            for group in self.task.group_names if here else ():
                patients = [s.patient_id for s in here if group in self.task.groups(s.label)]
                rows.append((split, group, len(patients), len(set(patients))))
        return rows

    def strata(self) -> dict[str, str]:
        """Patient -> the stratum that splits keep even; of a classification the rarest class of its slides."""
        labels: dict[str, list[str]] = defaultdict(list)
        for slide in self.slides:
            labels[slide.patient_id].append(slide.label)
        return dict(zip(labels, self.task.strata([*labels.values()]), strict=True))

    def _from_fold_column(self, fold: int) -> dict[str, Split]:
        missing = [s.slide_id for s in self.slides if s.fold is None]
        if missing:
            raise CohortError(f"the fold column is empty for {len(missing)} slides: {_some(missing)}; fill all or none")
        numbers = sorted({s.fold for s in self.slides if s.fold is not None})
        if fold not in numbers:
            raise CohortError(f"fold {fold} was asked for, the fold column holds {numbers}")
        return {s.patient_id: "test" if s.fold == fold else "train" for s in self.slides}

    def _draw_test(self, seed: int, fraction: float, folds: int | None, fold: int) -> set[str]:
        strata, rng = self.strata(), np.random.default_rng([seed, 0])
        if folds is None:
            classes = bool(self.classes)
            return draw_fraction(strata, fraction, rng, "test", classes=classes) if fraction > 0 else set()
        if not 0 <= fold < folds:
            raise CohortError(f"fold {fold} was asked for, folds of {folds} count from 0 to {folds - 1}")
        for label in self.classes:
            count = len({s.patient_id for s in self.slides if s.label == label})
            refuse_few(f"class {label!r}", count, folds)
        refuse_few("the cohort", len(strata), folds)
        return draw_folds(strata, folds, rng)[fold]

    def _lost(self, split: Split) -> list[str]:
        """Classes that a split in use does not hold."""
        here = {s.label for s in self.of(split)}
        return sorted(set(self.classes) - here) if here else []


def read_cohort(path: Path, *, task: Task = _BY_CLASS, bag: BagUnit = "slide") -> Cohort:
    """Read a CSV: slide_id, patient_id, the columns of `task`, optionally site, split (train, val, test) or fold (0, 1, ...).

    The task is by default a classification by the column "label". The file is as `read_table` takes it; more columns are
    ignored. Spaces around values are removed and counted. A slide without a label is left out and counted, by the words that
    were read as missing; where a `bag` is a patient, it has the label of his others, which must agree, and the split, fold and
    site of the first of them where it has none. A task that knows its names, such as a trained model's, takes no other label.
    Raises CohortError.
    """
    table = _read(path)
    rows, columns = table.rows, table.columns
    required = (*_IDS, *task.columns)
    missing = [name for name in required if name not in columns]
    if missing:
        hints = [f"{close[0]!r} for {name!r}?" for name in missing if (close := get_close_matches(name, columns, n=1))]
        raise CohortError(
            f"{path}: column {', '.join(map(repr, missing))} is missing; it has {', '.join(map(repr, columns)) or 'none'}"
            + (f"; did you mean {' '.join(hints)}" if hints else "")
        )
    labelled = [None if (label := _label(path, row, task)) is None else _slide(path, row, label) for row in rows]
    mates: dict[str, CohortSlide] = {}
    if bag == "patient":
        known = [slide for slide in labelled if slide is not None]
        try:
            _refuse_different_labels(known)
        except CohortError as error:
            raise CohortError(f"{path}: {error}") from None
        mates = {slide.patient_id: slide for slide in reversed(known)}
    slides: list[CohortSlide] = []
    unlabelled: dict[tuple[str, tuple[str, ...]], list[str]] = defaultdict(list)
    for row, slide in zip(rows, labelled, strict=True):
        if slide is not None:
            slides.append(slide)
            continue
        mate = mates.get(row.cells["patient_id"])
        if mate is not None:
            slides.append(_beside(mate, _slide(path, row, mate.label)))
        cells = (row.cells[name] for name in task.columns)
        words = tuple(sorted({cell for cell in cells if cell and cell.lower() in MISSING}))
        fate = "are left out" if mate is None else "are in the bags of their patients"
        unlabelled[fate, words].append(row.cells["slide_id"])
    without = {(fate, words): _without(task, words, ids, fate) for (fate, words), ids in sorted(unlabelled.items())}
    said = "".join(f"; {finding}" for (_, words), finding in without.items() if words)
    if not slides:
        raise CohortError(f"{path}: no slide has a label{said}")
    spaced = [row.cells["slide_id"] for row in rows if any(name in required for name in row.spaced)]
    findings = (*without.values(), *_finding("rows had spaces around values, which were removed", spaced))
    try:
        return Cohort(slides=tuple(slides), task=task.named([s.label for s in slides]), findings=findings)
    except (CohortError, ValueError) as error:
        raise CohortError(f"{path}: {error}{said}") from None


def read_patients(path: Path) -> dict[str, str]:
    """Slide -> patient of every row of a cohort file, whether it has a label or not. Raises CohortError."""
    table = _read(path)
    missing = [name for name in _IDS if name not in table.columns]
    if missing:
        raise CohortError(f"{path}: column {', '.join(map(repr, missing))} is missing; it tells whose a slide is")
    return {row.cells["slide_id"]: row.cells["patient_id"] for row in table.rows}


def has_columns(path: Path, task: Task) -> bool:
    """Whether a cohort file has the columns of a task. Raises CohortError."""
    return set(task.columns) <= set(_read(path).columns)


def read_columns(path: Path, names: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Slide -> its cells of any columns of a cohort file, without spaces around them. Raises CohortError for one that is not
    there."""
    table = _read(path)
    for name in ("slide_id", *names):
        if name not in table.columns:
            close = get_close_matches(name, table.columns, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise CohortError(f"{path}: column {name!r} is missing; it has {', '.join(map(repr, table.columns))}{hint}")
    return {row.cells["slide_id"]: tuple(row.cells[name] for name in names) for row in table.rows}


def column_names(path: Path) -> tuple[str, ...]:
    """The columns of a cohort file, in order. Raises CohortError."""
    return _read(path).columns


def _read(path: Path) -> Table:
    """All rows and the columns; what every reader of a cohort file counts on holds for rows with a label and without one."""
    table = read_table(path, "cohort file", keys=_IDS, error=CohortError)
    _refuse_ids(path, table)
    return table


def _refuse_ids(path: Path, table: Table) -> None:
    """Raises CohortError for an empty id, a word for missing as a patient, a slide in two rows, and patients that
    `refuse_alike` takes for one."""
    rows, known = table.rows, [name for name in _IDS if name in table.columns]
    for row in rows:
        for name in known:
            if not row.cells[name]:
                raise CohortError(f"{path}: line {row.line}: {name} is empty")
        patient = row.cells.get("patient_id", "")
        if patient.lower() in MISSING - {""}:
            raise CohortError(
                f"{path}: line {row.line}: patient_id {patient!r} says that it is missing, and would make one patient of all"
                " whose id is; write whose the slide is, or its slide_id where nobody knows"
            )
    try:
        if "slide_id" in known:
            _refuse_repeated([row.cells["slide_id"] for row in rows], [row.line for row in rows])
        if "patient_id" in known:
            refuse_alike((row.cells["patient_id"] for row in rows), "patient ids")
    except (CohortError, ValueError) as error:
        raise CohortError(f"{path}: {error}") from None


def _label(path: Path, row: TableRow, task: Task) -> str | None:
    try:
        return task.read([row.cells[name] for name in task.columns])
    except ValueError as error:
        raise CohortError(f"{path}: line {row.line}: slide {row.cells['slide_id']!r}: {error}") from None


def _beside(mate: CohortSlide, slide: CohortSlide) -> CohortSlide:
    """A slide with what its cells leave open of a labelled one of its patient."""
    fold = mate.fold if slide.fold is None else slide.fold
    return replace(slide, split=slide.split or mate.split, fold=fold, site=slide.site or mate.site)


def _refuse_different_labels(slides: Iterable[CohortSlide]) -> None:
    labels: dict[str, set[str]] = defaultdict(set)
    for slide in slides:
        labels[slide.patient_id].add(slide.label)
    for patient, own in labels.items():
        if len(own) > 1:
            raise CohortError(
                f"patient {patient!r} has slides of different labels, {', '.join(map(repr, sorted(own)))}, and is to be one bag;"
                " give all slides of a patient one label, or train with bag: slide"
            )


def _slide(path: Path, row: TableRow, label: str) -> CohortSlide:
    split, fold = row.cells.get("split", "").lower(), row.cells.get("fold", "")
    if split and split not in SPLITS:
        raise CohortError(f"{path}: line {row.line}: split {row.cells['split']!r}, wanted one of {', '.join(SPLITS)}")
    if fold and not fold.isdecimal():
        raise CohortError(f"{path}: line {row.line}: fold {fold!r}, wanted a whole number from 0")
    return CohortSlide(
        slide_id=row.cells["slide_id"],
        patient_id=row.cells["patient_id"],
        label=label,
        site=row.cells.get("site") or None,
        split=next((known for known in SPLITS if known == split), None),
        fold=int(fold) if fold else None,
    )


def _refuse_repeated(slide_ids: Sequence[str], lines: Sequence[int] = ()) -> None:
    """Raises CohortError for a slide that occurs twice; `lines` are those of the slides in a file."""
    repeated = [name for name, count in Counter(slide_ids).items() if count > 1]
    if repeated:
        own = ", ".join(str(line) for line, name in zip(lines, slide_ids, strict=False) if name == repeated[0])
        raise CohortError(
            f"slide_id must be unique, {len(repeated)} occur more than once: {_some(repeated)}"
            f"{f' ({repeated[0]!r} in lines {own})' if own else ''}; keep one row for each slide, labelled or not"
        )


def _refuse_shared_patients(slides: Iterable[CohortSlide]) -> None:
    for kind in ("split", "fold"):
        seen: dict[str, set[object]] = defaultdict(set)
        for slide in slides:
            if getattr(slide, kind) is not None:
                seen[slide.patient_id].add(getattr(slide, kind))
        shared = sorted(p for p, values in seen.items() if len(values) > 1)
        if shared:
            places = ", ".join(map(str, sorted(map(str, seen[shared[0]]))))
            raise CohortError(
                f"{len(shared)} patients are in more than one {kind}: {_some(shared)} ({shared[0]!r} in {places});"
                f" put all slides of a patient into one {kind}"
            )


def _without(task: Task, words: Sequence[str], slide_ids: Sequence[str], fate: str) -> Finding:
    """Slides without a label, whose cells hold nothing or `words`, which are read as missing and may have been meant."""
    what = f"slides have no label and {fate}"
    if words:
        what = f"slides say {' and '.join(map(repr, words))}, read as missing, and {fate}"
        what += f"; {task.rather}" if task.rather else ""
    return Finding(what=what, slide_ids=tuple(slide_ids))


def _finding(what: str, slide_ids: Sequence[str]) -> tuple[Finding, ...]:
    return (Finding(what=what, slide_ids=tuple(slide_ids)),) if slide_ids else ()


def _some(names: Sequence[str], count: int = 5) -> str:
    shown = ", ".join(repr(name) for name in names[:count])
    return shown + (f", ... ({len(names)} in all)" if len(names) > count else "")
