"""Units of extraction: slides stream through one warm encoder, and each ends on its own."""

from __future__ import annotations

import json
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import cast

from wsimil.errors import ConfigError, OutputError, StoreError, WsimilError
from wsimil.extraction.config import refuse_lost_masks, tiling_recipe
from wsimil.extraction.engine import Begun, Ended, Told, run_engine
from wsimil.extraction.sources import SlideSource
from wsimil.extraction.stain import with_stain_target
from wsimil.files import printable, publish, write_text
from wsimil.provenance import Json, canonical_json
from wsimil.stages.contents import Contents, content_of
from wsimil.stages.extract import encoders_and_spec, tell_mpp
from wsimil.stages.failures import write_failures
from wsimil.stages.interrupt import interrupt
from wsimil.stages.progress import Reporter
from wsimil.stages.slide_work import Place, SlideOutcome, SlideWork
from wsimil.stages.study.planning import EXTRACT, FEATURES, Study, source_of
from wsimil.stages.study.reasons import failure_of
from wsimil.stages.study.unchanged import refuse_replaced
from wsimil.store import StoredHeader, open_store
from wsimil.worklist import Ledger
from wsimil.worklist.disk import read_json
from wsimil.worklist.ledger import Attempt
from wsimil.worklist.worker import Failed, Made, Outcome


class ExtractRunner:
    """See `wsimil.worklist.worker.Runner`. Raises ConfigError, EncoderError."""

    def __init__(self, study: Study, ledger: Ledger, watch: Reporter) -> None:
        self._study, self._ledger, self._watch = study, ledger, watch
        # Where planning saw them says nothing of this machine.
        refuse_lost_masks(study.config.extract)
        self._config = with_stain_target(study.config.extract)
        near = {} if study.weights is None else {"encoder_weights": study.weights}
        self._encoders, self._spec = encoders_and_spec(study.config.extract.model_copy(update=near), watch)
        self._refuse_other_weights()
        self._refuse_another_recipe()

    def _refuse_other_weights(self) -> None:
        """Raises ConfigError where a file of weights is not what was planned with, as features would tell of it to nobody."""
        planned, here = self._study.plan.recipe.get("encoder_weights"), self._encoders[0].provenance["weights_sha256"]
        if planned is not None and planned != here:
            raise ConfigError(
                f"the encoder's weights {self._study.weights or self._config.encoder_weights} are not those that the study was"
                f" planned with (SHA-256 {here}, wanted {planned}); restore them, or plan anew into another folder"
            )

    def _refuse_another_recipe(self) -> None:
        """The first worker says of what its features are made; others make the same, or none. Raises ConfigError, OutputError."""
        encoder = self._encoders[0]
        mine: dict[str, Json] = {
            "encoder": dict(encoder.provenance), "tiling": tiling_recipe(self._spec, self._config),
            "precision": encoder.precision,
        }  # fmt: skip
        mine = json.loads(canonical_json(mine))
        path = self._study.plan.work / "features.json"
        if publish((json.dumps(mine, indent=1) + "\n").encode(), path):
            return
        theirs = read_json(path)
        if theirs != mine:
            parts = [
                f"{name}: {mine[name]} here, {theirs.get(name)} there"
                for name in mine
                if mine[name] != theirs.get(name)
            ]
            raise ConfigError(
                f"this worker would make features of another kind than those before it ({path}): {'; '.join(parts)}; use the same"
                " weights everywhere, and say extract.precision where some workers have a GPU and others none"
            )

    def run(self, attempts: Iterator[Attempt]) -> Generator[Outcome, None, None]:
        """Slides of one stream share batches; one that must be alone comes as a stream of its own, and has one reader."""
        first = next(attempts, None)
        if first is None:
            return
        if first.unit.last:
            for attempt in chain([first], attempts):
                try:
                    yield self._end(attempt)
                except WsimilError as error:
                    yield Failed.of(attempt, error)
            return
        claimed: list[Attempt] = []
        places: dict[str, Place] = {}

        def sources() -> Iterator[SlideSource]:
            for attempt in chain([first], attempts):
                source = source_of(attempt.unit.task)
                out = attempt.scratch / FEATURES
                store = open_store(out, mode="w", backend=self._config.store)
                # Nothing counts as complete: a try may have died when its features were out and its pictures were not.
                places[source.slide_id] = Place(store=store, out=out, complete=None)
                claimed.append(attempt)
                yield source

        work = SlideWork(self._config, self._encoders[0], self._spec, lambda source: places[source.slide_id], {})
        with closing(work.ready(sources())) as ready:
            run = run_engine(
                ready, self._encoders, size_px=self._spec.size_px, batch_size=self._config.batch_size,
                readers=1 if first.alone else self._config.readers, dtype=self._config.dtype,
            )  # fmt: skip
            with work.closing_slides(), closing(run):
                for event in run:
                    interrupt.check()
                    match event:
                        case Begun(key=key):
                            tell_mpp(work.prepared[key], self._watch)
                        case Told(text=text):
                            self._watch.note(text)
                        case Ended():
                            yield self._ended(work, claimed[event.key], event)

    def _ended(self, work: SlideWork, attempt: Attempt, ended: Ended) -> Outcome:
        source = source_of(attempt.unit.task)
        try:
            outcome = work.conclude(source, ended)
        except OutputError as error:
            return Failed(attempt=attempt, reason=str(error), fault=True)
        if outcome.status == "failed":
            return Failed(attempt=attempt, reason=f"{outcome.step}: {outcome.reason}", fault=outcome.fault)
        # A store of folders has one for each slide, which must come to its place in one piece.
        made = attempt.scratch / FEATURES
        folders = tuple(f"{FEATURES}/{path.name}" for path in sorted(made.glob("*.zarr")) if path.is_dir())
        try:
            # Read from where it lies now, where nobody else can have touched it.
            store = open_store(made, mode="r")
            header = store.header(source.slide_id)
        except StoreError as error:
            return Failed(attempt=attempt, reason=f"what was written just now cannot be read: {error}", fault=True)
        try:
            self._refuse_strangers(self._study.features / store.path(source.slide_id).name, header)
        except WsimilError as error:
            return Failed.of(attempt, error)
        return Made(attempt=attempt, folders=folders, summary={**outcome.to_json(), "content": content_of(header)})

    def _refuse_strangers(self, place: Path, mine: StoredHeader) -> None:
        """Raises ConfigError where features lie at `place` that no try of this study left, StoreError for broken ones."""
        if not place.exists():
            return
        there = open_store(place.parent, mode="r").header(mine.slide_id)
        if there.provenance.feature_digest != mine.provenance.feature_digest:
            raise ConfigError(
                f"{place} is there already and holds features of another kind: of another encoder, other weights or another"
                " tiling; somebody else put it there: move it away"
            )

    def _end(self, attempt: Attempt) -> Outcome:
        """The files that an extraction leaves beside its features."""
        out = attempt.scratch / FEATURES
        write_text(out / "config.yaml", self._config.to_yaml())
        scanned = self._ledger.scan()
        failed: list[SlideOutcome] = []
        lines: list[Json] = []
        for unit in self._study.plan.stage(EXTRACT).units:
            if unit.last:
                continue
            source = source_of(unit.task)
            if scanned[unit.id].done:
                said = cast("Mapping[str, Json]", self._ledger.receipt(unit.id)["summary"])
                lines.append({name: value for name, value in said.items() if name != "content"})
                continue
            outcome = _failure(source, *failure_of(self._ledger, unit.id, scanned[unit.id]))
            failed.append(outcome)
            lines.append(outcome.to_json())
        now = datetime.now(UTC).isoformat(timespec="seconds")
        log = [json.dumps({"time": now, **line}) for line in lines if isinstance(line, dict)]
        write_text(out / "extract.jsonl", printable("\n".join([*log, ""])))
        if failed:
            write_failures(out / "failures.csv", [outcome.failure for outcome in failed])
        # Whatever comes later, what is built on these features goes by this list.
        without: list[Json] = [outcome.slide_id for outcome in failed]
        summary: dict[str, Json] = {
            "slides": len(lines), "failed": len(failed), "without": without, "contents": {**self._contents(without)},
        }  # fmt: skip
        return Made(attempt=attempt, summary=summary)

    def _contents(self, without: Sequence[Json]) -> dict[str, str]:
        """What features hold, of those too that a try put there which died. Raises ConfigError where others lie there now."""
        made, reader = self._study.contents_made(self._ledger), Contents()
        units = self._study.plan.stage(EXTRACT).units
        slides = [unit.name for unit in units if not unit.last and unit.name not in without]
        if not slides:
            return {}
        store = open_store(self._study.features, mode="r")
        refuse_replaced(reader, store, made, made)
        return {slide_id: content for slide_id, content in reader.of(store, slides).items() if content} | made


def _failure(source: SlideSource, step: str, reason: str) -> SlideOutcome:
    return SlideOutcome(slide_id=source.slide_id, path=Path(source.path), status="failed", step=step, reason=reason)
