"""export html: the viewer as a folder or as one file that anybody opens without wsimil, with a reduced picture of each slide."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import ceil, log2
from pathlib import Path

import numpy as np

from wsimil.errors import ConfigError, SlideError, StoreError
from wsimil.export.scores import ScoreTable
from wsimil.export.shown import shown
from wsimil.export.viewer.built import Built, read_built
from wsimil.export.viewer.page import data_url, handing_over, static_page
from wsimil.export.viewer.payload import case_json, index_json, shown_status, what_if_json
from wsimil.export.viewer.pyramid import Pyramid
from wsimil.files import atomic_directory, write_text
from wsimil.provenance import Json
from wsimil.stages.interrupt import interrupt
from wsimil.stages.listed import MadeAnewError
from wsimil.stages.progress import Quiet, Reporter
from wsimil.stages.viewing.pictures import Pictures
from wsimil.stages.viewing.study import Study, open_study
from wsimil.stages.viewing.tissue import with_tissue

REDUCED_MPP = 2.0
OVERVIEW_PX = 4096
_MOST_BYTES = 400 * 2**20
_OURS = '<meta name="generator" content="wsimil '
_PAGE = "index.html"


@dataclass(frozen=True, slots=True, kw_only=True)
class HtmlOptions:
    """What a user may choose. `slides` are shown under the scores, reduced to about 2 µm/px, or to 4096 px in a `single_file`.

    `features` give tissue and `run` how answers were calibrated where predictions do not say, `cohort_csv` gives labels. Of
    each score of what a slide's answer rests on the `top` highest and lowest tiles are shown in full. `only` are slide ids, all
    where empty.
    """

    slides: Path | None = None
    features: Path | None = None
    run: Path | None = None
    cohort_csv: Path | None = None
    single_file: bool = False
    top: int = 9
    only: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class HtmlSummary:
    """What was written: the page to open, how many slides, those of them with a picture, and bytes in all."""

    page: Path
    slides: int
    pictures: int
    size_bytes: int
    notes: tuple[str, ...]


def export_html(
    predictions: Path,
    out: Path,
    *,
    options: HtmlOptions,
    built: Built | None = None,
    reporter: Reporter | None = None,
) -> HtmlSummary:
    """Write the folder `out`, whose index.html is the page, or the file `out`. Nothing of it names a file of this machine.

    An earlier export in the same place is replaced. Raises WsimilError.
    """
    built, reporter, notes = built or read_built(), reporter or Quiet(), list[str]()
    _refuse_foreign(out, single_file=options.single_file)
    study = _chosen(open_study(predictions, run=options.run, cohort_csv=options.cohort_csv), options.only)
    pictures = Pictures(options.slides, report=notes.append)
    try:
        if options.single_file:
            cases = _cases(study, options, pictures, _inline, reporter, notes)
            page = _page(study, cases, built, pictures=False)
            write_text(out, page)
            size = out.stat().st_size
        else:
            with atomic_directory(out) as folder:
                cases = _cases(
                    study, options, pictures, lambda name, jpeg: _beside(folder, name, jpeg), reporter, notes
                )
                (folder / _PAGE).write_text(_page(study, cases, built, pictures=True), encoding="utf-8")
                (folder / "LICENSES.txt").write_text(built.licenses, encoding="utf-8")
            size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    finally:
        pictures.close()
    shown = sum(isinstance(case, dict) and case.get("pyramid") is not None for case in cases.values())
    return HtmlSummary(
        page=out if options.single_file else out / _PAGE,
        slides=len(cases),
        pictures=shown,
        size_bytes=size,
        notes=tuple(dict.fromkeys((*study.notes, *notes))),
    )


Place = Callable[[str, bytes], str]
"""Puts a JPEG of some name where the page finds it, and says where."""


def _inline(_: str, jpeg: bytes) -> str:
    return data_url(jpeg)


def _beside(folder: Path, name: str, jpeg: bytes) -> str:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(handing_over(jpeg).encode("ascii") if path.suffix == ".js" else jpeg)
    return name


def _cases(
    study: Study, options: HtmlOptions, pictures: Pictures, place: Place, reporter: Reporter, notes: list[str]
) -> dict[str, Json]:
    """Every slide by its number; names of files are numbers too, whatever a slide is called."""
    found: dict[str, Json] = {}
    size = 0
    reporter.begin("slides", len(study.cohort.cases))
    for index, case in enumerate(study.cohort.cases):
        interrupt.check()
        reporter.item(case.slide_id, 0)
        if case.scored:
            found[str(index)] = _case(study, index, options, pictures, place, notes)
        else:
            found[str(index)] = {"error": f"there are no tile scores: {shown_status(case.status)}"}
        size += len(json.dumps(found[str(index)], default=dict))
        if size > _MOST_BYTES:
            raise ConfigError(
                f"{index + 1} of {len(study.cohort.cases)} slides make a page of {size / 2**20:.0f} MB, more than browsers open;"
                " choose slides with --only, or look at all of them with wsimil view"
            )
        reporter.finish_item(f"{case.slide_id}: written")
    return found


def _case(study: Study, index: int, options: HtmlOptions, pictures: Pictures, place: Place, notes: list[str]) -> Json:
    try:
        table = study.table(index)
    except MadeAnewError as error:
        notes.append(str(error))
        return {"error": "its tile scores belong to another answer than the one in the list"}
    except StoreError as error:
        notes.append(str(error))
        return {"error": "its score table cannot be read"}
    what_if = what_if_json(table, mix=study.mix, rule=study.cohort.rule, recomputed=False)
    tree = case_json(index, with_tissue(table, options.features), what_if=what_if)
    refusal = pictures.refuse(table)
    tree["pyramid_note"] = refusal
    if refusal is None:
        pyramid = _reduced(table, single_file=options.single_file)
        try:
            tiles = {
                f"{level}/{x}_{y}": place(
                    f"pictures/{index}/{level}/{x}_{y}.js", pictures.tile(table, pyramid.tile(level, x, y))
                )
                for level, x, y in pyramid.all_tiles()
            }
            crops = {
                str(tile): place(f"crops/{index}/{tile}.jpg", pictures.crop(table, tile))
                for tile in shown_tiles(table, top=options.top)
            }
        except SlideError:
            tree["pyramid_note"] = "its file cannot be read to the end"
            return tree
        url: dict[str, Json] = {"url": f"pictures/{index}/{{level}}/{{x}}_{{y}}.js"}
        tree["pyramid"] = pyramid.to_json({"data": {**tiles}} if options.single_file else url)
        tree["crops"] = {"tiles": {**crops}}
    return tree


def shown_tiles(table: ScoreTable, *, top: int) -> list[int]:
    """The `top` highest and lowest tiles of every score of what the answer rests on, and of attention; each tile once."""
    main = table.task.main_output(table.values)
    found: set[int] = set()
    for name in table.score_names:
        kind, _, of = name.partition(":")
        if of != main and kind != "attention":
            continue
        values = shown(table, name).values  # by which the page ranks them
        scored = int((~np.isnan(values)).sum())
        for one in (-values, values):
            order = np.argsort(one, kind="stable")  # NaN last, and of equal ones the first first, as on the page
            found |= {int(i) for i in order[: min(top, scored)]}
    return sorted(found)


def _reduced(table: ScoreTable, *, single_file: bool) -> Pyramid:
    whole = Pyramid(size0_px=table.slide_size0_px)
    if single_file:
        return whole.without_largest(max(0, ceil(log2(max(table.slide_size0_px) / OVERVIEW_PX))))
    return whole.without_largest(max(0, round(log2(REDUCED_MPP / table.mpp))))


def _page(study: Study, cases: dict[str, Json], built: Built, *, pictures: bool) -> str:
    return static_page(index_json(study.cohort), cases, built, pictures=pictures)


def _chosen(study: Study, only: Sequence[str]) -> Study:
    if not only:
        return study
    known = {case.slide_id for case in study.cohort.cases}
    unknown = [slide_id for slide_id in only if slide_id not in known]
    if unknown:
        raise ConfigError(f"slide {unknown[0]!r} is not among the predictions; they are of {len(known)} other slides")
    cases = tuple(case for case in study.cohort.cases if case.slide_id in set(only))
    return replace(study, cohort=replace(study.cohort, cases=cases))


def _refuse_foreign(out: Path, *, single_file: bool) -> None:
    """What stands at `out` is replaced, so it must be an earlier export."""
    if single_file and out.is_dir():
        raise ConfigError(f"{out} is a folder; one file needs a name of its own, such as {out.name}.html")
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    page = out if single_file else out / _PAGE
    try:
        with page.open(encoding="utf-8", errors="replace") as file:
            ours = _OURS in file.read(4096)
    except OSError:
        ours = False
    if not ours:
        raise ConfigError(
            f"{out} holds something else than an export of wsimil, and would be replaced; give another place"
        )
