"""What a study is: from slides, a cohort and splits to features, models, answers and reports."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator, model_validator

from wsimil.config import FrozenConfig
from wsimil.evaluation.attribution import LEAVE_ONE_OUT_TILES, ScoreKind
from wsimil.export.span import RangeKind
from wsimil.extraction.config import ExtractConfig
from wsimil.geometry import Origin
from wsimil.stages.predict_options import PredictOptions
from wsimil.stages.train_config import TrainConfig

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


class StudyPredict(FrozenConfig):
    """What models are asked. `slides`: those of each model's own test split ("test"), or all; the rest as `wsimil predict`."""

    slides: Literal["test", "all"] = "test"
    heatmaps: bool = True
    scores: tuple[ScoreKind, ...] | None = None
    score: str | None = None
    leave_one_out_tiles: int = Field(LEAVE_ONE_OUT_TILES, ge=2)
    range: RangeKind = "cohort"
    origin: Origin = "bounds"

    @property
    def options(self) -> PredictOptions:
        """As `wsimil predict` takes them."""
        return PredictOptions(
            heatmaps=self.heatmaps,
            scores=self.scores,
            score=self.score,
            leave_one_out_tiles=self.leave_one_out_tiles,
            range=self.range,
            origin=self.origin,
        )


class StudyConfig(FrozenConfig):
    """Everything about a study but the folder it lies in.

    Either `slides`, a folder or a manifest that features are made of, or `features` that are there already. `train`: configs by
    name, each trained in every round of `splits` (all that have a test split, or `rounds`) with every seed; needs `cohort`.
    `predict`: null leaves it out. `report`: one for each config, of what its runs said of their test splits.
    `max_bad`: the share of a stage's units that may fail, in [0, 1]; beyond it nothing is built on the rest. `lease_s`: a worker
    that is not heard of for so long is taken for dead; far more than a network file system keeps times of files from us.
    """

    slides: Path | None = None
    features: Path | None = None
    cohort: Path | None = None
    splits: Path | None = None
    extract: ExtractConfig = ExtractConfig()
    train: dict[str, TrainConfig] = Field(default_factory=dict)
    rounds: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (0,)
    predict: StudyPredict | None = None
    report: bool = True
    max_bad: float = Field(0.05, ge=0, le=1)
    lease_s: float = Field(120.0, ge=1)

    @field_validator("rounds", mode="before")
    @classmethod
    def _as_text(cls, value: object) -> object:
        """YAML reads a round named 0 as a number."""
        return [str(one) for one in value] if isinstance(value, list | tuple) else value

    @field_validator("train")
    @classmethod
    def _names_of_folders(cls, value: dict[str, TrainConfig]) -> dict[str, TrainConfig]:
        for name in value:
            if not _NAME.fullmatch(name):
                raise ValueError(f"{name!r} names a folder: letters, digits, dots, dashes and underscores, up to 64")
        return value

    @model_validator(mode="after")
    def _whole(self) -> StudyConfig:
        if (self.slides is None) == (self.features is None):
            raise ValueError("give either slides, to make features of, or features that are there")
        if self.features is not None and "extract" in self.model_fields_set:
            raise ValueError(
                "extract is how features are made of slides, and features are given; drop the one or the other"
            )
        if self.train and (self.cohort is None or self.splits is None):
            raise ValueError("train needs cohort, the labels, and splits, a file that `wsimil splits make` wrote")
        if self.predict is not None and not self.train:
            raise ValueError("predict asks the models of the study, and train names none")
        if self.slides is None and not self.train:
            raise ValueError("nothing to do: give slides, or train")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds) or min(self.seeds) < 0:
            raise ValueError("seeds: wanted whole numbers from 0, each once")
        if len(set(self.rounds)) < len(self.rounds):
            raise ValueError("rounds: wanted each once")
        return self

    def absolute(self) -> StudyConfig:
        """The same with paths that mean the same on every machine and in every folder."""

        def whole(path: Path | None) -> Path | None:
            return None if path is None else path.absolute()

        extract, stain = self.extract, self.extract.stain
        if stain.reference is not None:
            extract = extract.model_copy(
                update={"stain": stain.model_copy(update={"reference": whole(stain.reference)})}
            )
        given = {name: getattr(extract, name) for name in ("encoder_weights", "masks")}
        extract = extract.model_copy(update={name: whole(path) for name, path in given.items() if path is not None})
        update: dict[str, object] = {} if extract == self.extract else {"extract": extract}
        for name in ("slides", "features", "cohort", "splits"):
            if getattr(self, name) is not None:
                update[name] = whole(getattr(self, name))
        started = {name: one for name, one in self.train.items() if one.fit.warm_start is not None}
        for name, one in started.items():
            fit = one.fit.model_copy(update={"warm_start": whole(one.fit.warm_start)})
            started[name] = one.model_copy(update={"fit": fit})
        if started:
            update["train"] = {**self.train, **started}
        return self.model_copy(update=update)


def example() -> StudyConfig:
    """A study of slides by one method, with all that may be set."""
    return StudyConfig(
        slides=Path("slides"), cohort=Path("cohort.csv"), splits=Path("splits.json"), train={"abmil": TrainConfig()},
        predict=StudyPredict(),
    )  # fmt: skip
