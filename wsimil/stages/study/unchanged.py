"""What a study rests on is what it was planned with: results of two cohorts, or of two sets of slides, are of no study."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypedDict

from wsimil.errors import ConfigError, StoreError
from wsimil.mil.facts import FACTS, WEIGHTS
from wsimil.provenance import sha256_file
from wsimil.stages.contents import Contents
from wsimil.stages.study.config import StudyConfig
from wsimil.store.base import FeatureStore


class FeaturesPin(TypedDict):
    """Of features that were there when a study was planned: their kind, and by slide what they hold (see `Contents`)."""

    kind: str
    contents: dict[str, str]


def files_pin(config: StudyConfig) -> dict[str, str]:
    """SHA-256 of each file that results depend on, by what it is to the study. Raises ConfigError."""
    return {what: content(path) for what, path in _files(config)}


def refuse_changed_files(config: StudyConfig, planned: dict[str, str]) -> None:
    """Raises ConfigError where a file is not what it was, or not there."""
    for what, path in _files(config):
        if content(path) != planned.get(what):
            raise ConfigError(
                f"{what} {path} is not what the study was planned with; restore it, or plan anew into another folder"
            )


def weights_pin(config: StudyConfig) -> str | None:
    """SHA-256 of the encoder's weights where slides are encoded with those of a file. Raises ConfigError."""
    path = config.extract.encoder_weights
    return None if config.slides is None or path is None else content(path)


def features_pin(store: FeatureStore) -> FeaturesPin:
    """Of the features that lie in `store` now."""
    return {"kind": kind_of(store), "contents": Contents().of(store, store.ids())}


def refuse_changed_features(where: Path, ids: Sequence[str], planned: FeaturesPin) -> None:
    """Raises ConfigError where slides came or went."""
    if set(ids) != set(planned["contents"]):
        raise ConfigError(
            f"features {where} had {len(planned['contents'])} slides when the study was planned and has {len(ids)} now, or"
            " others; a study is of the slides that it was planned with: restore them, or plan anew into another folder"
        )


def refuse_replaced(
    contents: Contents, store: FeatureStore, wanted: Mapping[str, str], slide_ids: Iterable[str]
) -> None:
    """Raises ConfigError where features of `slide_ids` are not `wanted`, those that the study was begun with."""
    if told := contents.replaced(store, wanted, slide_ids):
        raise ConfigError(
            f"features were replaced since the study was planned or made them, {told}; a study is of one set of features: restore"
            " these, or plan anew into another folder"
        )


def kind_of(store: FeatureStore) -> str:
    """Which kind of features a store holds, by the first that can be read and has a tile; empty where none has."""
    for slide_id in store.ids():
        try:
            header = store.header(slide_id)
        except StoreError:
            continue  # whoever needs that slide says so
        if header.n:
            return header.provenance.feature_digest
    return ""


def content(path: Path) -> str:
    """SHA-256 of a file. Raises ConfigError."""
    try:
        return sha256_file(path)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror or error}") from None


def _files(config: StudyConfig) -> Iterator[tuple[str, Path]]:
    if not config.train or config.cohort is None or config.splits is None:
        return
    yield "cohort", config.cohort
    yield "splits", config.splits
    for name, train in config.train.items():
        if train.fit.warm_start is not None:
            for file in (FACTS, WEIGHTS):
                yield f"fit.warm_start of {name} ({file})", train.fit.warm_start / file
