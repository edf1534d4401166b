"""What a person reads at the end of a command: tables and lines that fit 80 columns, or JSON for a program."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from pathlib import Path

    from wsimil.cohort import BagUnit, Cohort
    from wsimil.encoders import EncoderCard
    from wsimil.evaluation.bootstrap import Estimate
    from wsimil.stages.convert import ConvertSummary
    from wsimil.stages.demo import DemoResult
    from wsimil.stages.doctor import Check
    from wsimil.stages.export_html import HtmlSummary
    from wsimil.stages.extract import ExtractSummary
    from wsimil.stages.import_checkpoint import ImportSummary
    from wsimil.stages.inspect import SlideReport
    from wsimil.stages.pack import PackSummary
    from wsimil.stages.plan_extraction import ExtractPlan
    from wsimil.stages.predict import PredictSummary
    from wsimil.stages.train import TrainPlan, TrainSummary

_COLORS = {"PASS": "green", "WARN": "yellow", "FAIL": "red", "failed": "red", "complete": "green"}


def stdout() -> Console:
    """Where results go."""
    return Console()


def stderr() -> Console:
    """Where progress and errors go."""
    return Console(stderr=True)


def say(*lines: str) -> None:
    """Print plain lines, unwrapped, so that they survive a pipe."""
    for line in lines:
        stdout().print(line, markup=False, highlight=False, soft_wrap=True)


def warn(line: str) -> None:
    """Print what a person should know beside the results."""
    stderr().print(line, markup=False, highlight=False, soft_wrap=True)


def say_json(value: object) -> None:
    """Print one JSON value."""
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table; no columns, no header. Long cells fold, nothing is cut."""
    grid = Table(box=box.SIMPLE_HEAD, show_header=bool(columns), pad_edge=False)
    for column in columns:
        grid.add_column(column, overflow="fold")
    for row in rows:
        grid.add_row(*(Text(cell, style=_COLORS.get(cell, "")) for cell in row))
    stdout().print(grid)


def show_summary(summary: ExtractSummary, out: Path, *, as_json: bool) -> None:
    """How an extraction went."""
    done, skipped, failed = summary.count("done"), summary.count("skipped"), summary.count("failed")
    rate = summary.tiles / summary.seconds if summary.seconds else 0.0
    if as_json:
        say_json(
            {
                "done": done,
                "skipped": skipped,
                "failed": failed,
                "tiles": summary.tiles,
                "seconds": round(summary.seconds, 2),
                "tiles_per_s": round(rate, 1),
                "wait_share": round(summary.wait_share, 3),
                "stages": summary.stages.rounded(),
                "peak_rss_mb": round(summary.peak_rss_mb),
                "duplicates": [list(ids) for ids in summary.duplicates],
                "failures": {failure.slide_id: failure.reason for failure in summary.failures},
            }
        )
        return
    say(f"{done} slides done, {skipped} complete already, {failed} failed -> {out}")
    if done:
        stages = ", ".join(f"{name} {value:.1f}" for name, value in summary.stages.rounded().items())
        say(
            f"{summary.tiles} tiles in {summary.seconds:.1f} s ({rate:.0f}/s); the encoder waited for tiles"
            f" {summary.wait_share:.0%} of its time; peak memory {summary.peak_rss_mb:.0f} MB",
            f"seconds by stage: {stages}",
        )
    for ids in summary.duplicates:
        say(f"one content under {len(ids)} names: {', '.join(ids)}; keep one of them, or they count as several slides")
    if summary.failures:
        table(["failed slide", "reason"], [(f.slide_id, f.reason) for f in summary.failures])
        say(f"The list is also in {out}/failures*.csv; mend and run the same command again.")


def show_plan(planned: ExtractPlan, out: Path, *, as_json: bool) -> None:
    """What an extraction would do."""
    slides, spec = planned.slides, planned.spec
    tiles, size, seconds = (sum(getattr(s, name) for s in slides) for name in ("tiles", "bytes_", "seconds"))
    if as_json:
        rows = [
            {
                "slide_id": s.slide_id,
                "status": s.status,
                "tiles": s.tiles,
                "mpp": s.mpp,
                "bytes": s.bytes_,
                "seconds": round(s.seconds, 1),
                "reason": s.reason,
            }
            for s in slides
        ]
        say_json({"slides": rows, "tiles": tiles, "bytes": size, "seconds": round(seconds, 1)})
        return
    table(
        ["slide", "status", "µm/px", "tiles", "MB", "s"],
        [
            (s.slide_id, s.status, f"{s.mpp:.4g}", str(s.tiles), f"{s.bytes_ / 1e6:.1f}", f"{s.seconds:.1f}")
            if s.status == "to do"
            else (s.slide_id, s.status, "", "", "", "")
            for s in slides
        ],
    )
    failed = [(s.slide_id, s.reason) for s in slides if s.status == "failed"]
    if failed:
        table(["slide that would fail", "reason"], failed)
    say(
        f"{sum(s.status == 'to do' for s in slides)} of {len(slides)} slides to do: {tiles} tiles of {spec.size_um:g} µm"
        f" ({spec.size_px} px at {spec.mpp:.4g} µm/px), {size / 1e6:.1f} MB in {out}, about {seconds:.0f} s"
        f" ({planned.tiles_per_s:.0f} tiles/s, measured on {planned.measured_tiles} tiles). Nothing was written."
    )


def show_train_plan(planned: TrainPlan, *, as_json: bool) -> None:
    """What a training run would learn from."""
    if as_json:
        rows = [{"split": s, "label": c, "slides": n, "patients": p} for s, c, n, p in planned.cohort.counts()]
        findings = [str(finding) for finding in planned.cohort.findings]
        say_json({"method": planned.method, "in_dim": planned.in_dim, "cohort": rows, "findings": findings})
        return
    _show_cohort(planned.cohort)
    say(f"{planned.method} on {planned.in_dim} features an instance. Nothing was written.")


def show_training(summary: TrainSummary, out: Path, *, as_json: bool) -> None:
    """How a training run went."""
    from wsimil.export.report.cells import shown

    fit = summary.fit
    if as_json:
        say_json(
            {
                "epochs": len(fit.history),
                "kept_epoch": fit.kept_epoch,
                "stopped_early": fit.stopped_early,
                "findings": [str(finding) for finding in summary.cohort.findings],
                "metrics": _metrics_json(summary.metrics),
                "decision": summary.decision.to_json(),
            }
        )
        return
    _show_cohort(summary.cohort)
    ended = ", stopped early" if fit.stopped_early else ""
    say(f"{len(fit.history)} epochs{ended}; the weights of epoch {fit.kept_epoch} were kept -> {out}")
    threshold = summary.decision.threshold
    if threshold is not None:
        say(
            f"{summary.cohort.task.positive} said from {shown(threshold.value)} on ({threshold.rule} on the validation split:"
            f" sensitivity {threshold.sensitivity:.2f}, specificity {threshold.specificity:.2f} there)"
        )
    for name, one in summary.decision.labels.items():
        if one.threshold is not None:
            say(f"{name} said from {shown(one.threshold.value)} on ({one.threshold.rule} on the validation split)")
    for note in summary.decision.notes:
        say(f"note: {note}")
    _show_metrics(summary.metrics, summary.cohort.task.positive, summary.bag)


def show_prediction(summary: PredictSummary, out: Path, *, as_json: bool) -> None:
    """What was predicted."""
    answered = [answer for answer in summary.answers if answer.values is not None]
    if as_json:
        say_json(
            {
                "slides": len(summary.answers),
                "answered": len(answered),
                "failures": dict(summary.failures),
                "not_counted_in_metrics": list(summary.seen),
                "notes": list(summary.notes),
                "metrics": _metrics_json(summary.metrics),
            }
        )
        return
    empty = len(summary.answers) - len(answered) - len(summary.failures)
    say(f"{len(answered)} {summary.bag}s answered, {empty} without tissue, {len(summary.failures)} failed -> {out}")
    for note in summary.notes:
        say(f"note: {note}")
    if summary.failures:
        table([f"failed {summary.bag}", "reason"], list(summary.failures.items()))
    if summary.metrics and summary.seen:
        whom = "them" if summary.bag == "patient" else "their patients"
        say(
            f"{len(summary.seen)} {summary.bag}s do not count below: the model learned from {whom}, or was chosen on them."
        )
    _show_metrics(summary.metrics, summary.task.positive, summary.bag)


def show_packing(summary: PackSummary, out: Path, *, as_json: bool) -> None:
    """What was packed."""
    rates = {
        "write_mb_per_s": summary.bytes_after / 1e6 / summary.write_seconds,
        "read_back_mb_per_s": summary.bytes_after / 1e6 / summary.verify_seconds,
    }
    if as_json:
        say_json(
            asdict(summary)
            | {"failed_ids": list(summary.failed_ids)}
            | {name: round(rate, 1) for name, rate in rates.items()}
        )
        return
    say(
        f"{summary.slides} slides, {summary.tiles} tiles of {summary.dim} {summary.dtype} features -> {out}",
        f"{summary.files_before} files, {summary.bytes_before / 1e6:.1f} MB became {summary.files_after} files,"
        f" {summary.bytes_after / 1e6:.1f} MB",
        f"written at {rates['write_mb_per_s']:.0f} MB/s and read back at {rates['read_back_mb_per_s']:.0f} MB/s, in"
        f" {summary.write_seconds + summary.verify_seconds:.1f} s",
    )
    if summary.failed_ids:
        named = ", ".join(map(repr, summary.failed_ids[:5])) + (" ..." if len(summary.failed_ids) > 5 else "")
        say(
            f"note: {len(summary.failed_ids)} slides failed in the last extraction, and are packed with the features of an"
            f" earlier one: {named}"
        )


def show_import(summary: ImportSummary, out: Path, *, as_json: bool) -> None:
    """What became of a checkpoint."""
    if as_json:
        say_json(
            {
                "method": summary.method,
                "config": summary.config.model_dump(mode="json"),
                "in_dim": summary.in_dim,
                "classes": list(summary.classes),
                "features": None if summary.features is None else dict(summary.features.encoder),
                "assumed": dict(summary.assumed),
            }
        )
        return
    say(f"{summary.method}, {summary.in_dim} features an instance, classes {', '.join(summary.classes)} -> {out}")
    if summary.assumed:
        found = ", ".join(f"{name}={json.dumps(value)}" for name, value in summary.assumed.items())
        say(
            f"note: its tensors do not tell, so these are the official defaults: {found}. If it was trained otherwise its answers"
            " are wrong; set them: --set method.<name>=<value>"
        )
    if summary.features is None:
        say(
            "note: on which features it was trained is not known; say it with --features, so that predictions can check"
        )


def show_conversion(summary: ConvertSummary, out: Path, *, as_json: bool) -> None:
    """How a conversion went."""
    done, skipped, failed = summary.count("done"), summary.count("skipped"), summary.count("failed")
    tiles = sum(slide.tiles for slide in summary.slides)
    if as_json:
        say_json(
            {
                "from": summary.layout,
                "to": summary.to,
                "done": done,
                "skipped": skipped,
                "failed": failed,
                "tiles": tiles,
                "seconds": round(summary.seconds, 2),
                "failures": {failure.slide_id: failure.reason for failure in summary.failures},
                "notes": list(summary.notes),
            }
        )
        return
    say(
        f"{summary.layout} to {summary.to}: {done} slides done, {skipped} complete already, {failed} failed -> {out}",
        f"{tiles} tiles in {summary.seconds:.1f} s",
        *(f"note: {note}" for note in summary.notes),
    )
    if summary.failures:
        table(["failed slide", "reason"], [(f.slide_id, f.reason) for f in summary.failures])
        say(f"The list is also in {out}/failures.csv; mend and run the same command again.")


def show_demo(result: DemoResult, out: Path) -> None:
    """How a demo went, and where to look."""

    def number(value: float | None) -> str:
        return "undefined" if value is None else f"{value:.3f}"

    rows = [
        (f"slide AUROC, {result.test_slides} test slides", number(result.slide_auroc)),
        (
            f"tile AUROC of the class contribution, {result.tiles} tiles of test slides with tumor",
            number(result.tile_auroc),
        ),
        ("tile AUROC of attention, the same tiles", number(result.attention_auroc)),
    ]
    say("")
    table(["on generated slides", ""], rows)
    table(
        ["where to look", ""],
        [
            (str(result.picture), "a heatmap on a slide with tumor"),
            (str(out / "truth"), "the tumor that was drawn, for QuPath"),
            (str(out / "predictions" / "qupath"), "tiles with scores, for QuPath"),
            (str(out / "predictions" / "predictions.csv"), "probabilities"),
            (str(out / "run" / "metrics.json"), "metrics with intervals"),
        ],
    )
    say(
        f"Done in {result.seconds:.0f} s. Drawn slides are easier than real ones: these figures say that the chain works."
    )


def _show_cohort(cohort: Cohort) -> None:
    rows = [(split or "all", label, str(slides), str(patients)) for split, label, slides, patients in cohort.counts()]
    group = "class" if cohort.task.kind == "classification" else "group"
    table(["split", group, "slides", "patients"], rows)
    say(*(f"note: {finding}" for finding in cohort.findings))


def _show_metrics(metrics: Mapping[str, Mapping[str, Estimate]], positive: str, bag: BagUnit) -> None:
    from wsimil.export.report.cells import shown
    from wsimil.export.report.names import of_class

    for split, found in metrics.items():
        rows = []
        for name, estimate in found.items():
            value = "undefined" if estimate.value is None else shown(estimate.value)
            told = estimate.low is not None and estimate.high is not None
            interval = f"{shown(estimate.low)} to {shown(estimate.high)}" if told else ""
            rows.append((name + of_class(name, positive), value, interval))
        title = f"{bag}s that count" if split == "all" else f"{split} {bag}s"
        table([title, "value", "95 % CI over patients"], rows)


def _metrics_json(metrics: Mapping[str, Mapping[str, Estimate]]) -> dict[str, dict[str, dict[str, float | int | None]]]:
    return {split: {name: asdict(estimate) for name, estimate in found.items()} for split, found in metrics.items()}


def show_slide(report: SlideReport, *, as_json: bool) -> None:
    """What a slide is."""
    info, grid = report.info, report.grid
    facts = {
        "slide": info.slide_id,
        "vendor": info.vendor,
        "size": f"{info.size0_px[0]} × {info.size0_px[1]} px, {info.size_um[0] / 1000:.3g} × {info.size_um[1] / 1000:.3g} mm",
        "µm per pixel": f"{info.mpp:.6g}, from {info.mpp_detail}",
        "levels": ", ".join(f"1:{downsample:.5g}" for downsample in info.level_downsamples),
        "scanned bounds": "x {}, y {}, {} × {} px".format(*info.bounds0_px),
        "tissue": f"{report.tissue.area_mm2:.3g} mm² ({report.tissue.method}, {report.tissue.mpp:.3g} µm/px)",
        "tiles": report.refusal,
        "digest": info.digest,
    }
    if grid is not None:
        facts["tiles"] = (
            f"{len(grid)} of {grid.spec.size_um:g} µm: {grid.read_px} px of level {grid.read_level} become"
            f" {grid.spec.size_px} px; {grid.effective_mpp:.5g} µm/px for {grid.spec.mpp:.5g} asked"
        )
    if as_json:
        say_json(facts)
    else:
        table([], facts.items())


def show_checks(checks: Sequence[Check], *, as_json: bool) -> None:
    """How a machine is."""
    if as_json:
        say_json([{"name": c.name, "verdict": c.verdict, "found": c.found, "fix": c.fix} for c in checks])
    else:
        rows = [(c.verdict, c.name, c.found + (f"\n→ {c.fix}" if c.fix else "")) for c in checks]
        table(["", "check", "found, and what to do"], rows)


def show_encoders(cards: Sequence[EncoderCard], *, as_json: bool) -> None:
    """Which encoders there are."""
    if as_json:
        names = ("name", "dim", "input_px", "mpp", "pooling", "license", "gated", "paper")
        say_json([{name: getattr(card, name) for name in names} for card in cards])
        return
    table(
        ["id", "dim", "px", "µm/px", "pooling", "license"],
        [
            (
                card.name,
                str(card.dim),
                str(card.input_px),
                ", ".join(f"{mpp:g}" for mpp in card.mpp) or "any",
                card.pooling,
                card.license + (" (gated)" if card.gated else ""),
            )
            for card in cards
        ],
    )
    say("Any other timm model: timm:<name>, for example timm:resnet18.a1_in1k")


def show_methods(described: Mapping[str, Mapping[str, object]], *, as_json: bool) -> None:
    """Which methods there are, with the defaults of their hyperparameters."""
    if as_json:
        say_json(described)
        return
    rows = [
        (name, "\n".join(f"{key}={value!r}" for key, value in config.items())) for name, config in described.items()
    ]
    table(["id", "hyperparameters (--set method.<key>=<value>)"], rows)


def show_html(summary: HtmlSummary, *, as_json: bool) -> None:
    """Where the page is, and what it lacks."""
    if as_json:
        say_json(asdict(summary) | {"page": str(summary.page)})
        return
    for note in summary.notes:
        warn(note)
    say(
        f"{summary.slides} slides, {summary.pictures} of them with a picture, {summary.size_bytes / 2**20:.1f} MB ->"
        f" {summary.page}"
    )
