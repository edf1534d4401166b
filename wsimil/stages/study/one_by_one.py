"""What units of prediction and of drawing share: features that are those of the study, and one unit after another."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator, Iterator

from wsimil.stages.features import open_features
from wsimil.stages.progress import Reporter
from wsimil.stages.study.config import StudyPredict
from wsimil.stages.study.planning import Study
from wsimil.worklist import Ledger
from wsimil.worklist.ledger import Attempt
from wsimil.worklist.worker import Failed, Outcome

WARM = 64
"""Of so many models a worker keeps what it has loaded."""


class OneByOne(ABC):
    """See `wsimil.worklist.worker.Runner`. Raises ConfigError where the study is not what was planned."""

    def __init__(self, study: Study, ledger: Ledger, watch: Reporter) -> None:
        self._study, self._ledger, self._watch = study, ledger, watch
        self._options = (study.config.predict or StudyPredict()).options
        self._store = open_features(study.features)
        study.refuse_changed_files()
        study.refuse_other_features(self._store, ledger)
        self._features = study.features.parent if (study.features / "zarr.json").is_file() else study.features
        self._ids = frozenset(self._store.ids())

    def run(self, attempts: Iterator[Attempt]) -> Generator[Outcome, None, None]:
        """One after another; what is loaded stays so."""
        for attempt in attempts:
            try:
                yield self._do(attempt)
            except Exception as error:  # noqa: BLE001 - one bad slide never stops the others; it is recorded
                yield Failed.of(attempt, error)

    @abstractmethod
    def _do(self, attempt: Attempt) -> Outcome: ...
