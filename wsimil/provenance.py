"""Where a result came from: everything that decides its numbers, and one digest of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import TypeAlias

Json: TypeAlias = "bool | int | float | str | list[Json] | Mapping[str, Json] | None"

RECIPE_VERSION = 1
"""Raised by one whenever a change of code changes features that the same config would give."""

HALF_SCALE = "JPEG decoded at half scale, then "
"""How the resampling of such a tiling begins."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """The recipe of one feature file: change any part of it and the file is made anew.

    `encoder` (name, pooling, transform, weights) and `tiling` (side, mpp, stride, resampling) say what kind of features these
    are; `pixels` (reader, tissue segmenter, precision, storage type) how they were made; `slide` (its mpp and where that came
    from, a mask given by the user) and `slide_digest` belong to the slide.
    """

    encoder: Mapping[str, Json]
    tiling: Mapping[str, Json]
    pixels: Mapping[str, Json]
    slide: Mapping[str, Json]
    slide_digest: str
    version: str = field(compare=False)
    recipe_version: int = RECIPE_VERSION

    def __post_init__(self) -> None:
        for name in ("encoder", "tiling", "pixels", "slide"):
            object.__setattr__(self, name, MappingProxyType(json.loads(canonical_json(getattr(self, name)))))

    def __reduce__(self) -> tuple[Callable[[Mapping[str, Json]], Provenance], tuple[dict[str, Json]]]:
        # A read-only mapping cannot be pickled, and bags travel between processes.
        return Provenance.from_json, (self.to_json(),)

    @property
    def digest(self) -> str:
        """SHA-256 over all fields but `version`, 64 hex digits."""
        return sha256_json({k: v for k, v in self.to_json().items() if k != "version"})

    @property
    def feature_digest(self) -> str:
        """SHA-256 over what must agree for two bags to be of one kind: encoder, tiling, recipe version."""
        return sha256_json(self._kind())

    @property
    def half_scale(self) -> bool:
        """Whether JPEG was decoded at half scale too: the slide's levels are then not those of its file alone."""
        return str(self.tiling.get("resampling")).startswith(HALF_SCALE)

    def without_slide(self) -> Provenance:
        """The same without what belongs to one slide, or to a file of it: what a model keeps of the features it learned from."""
        pixels = {name: value for name, value in self.pixels.items() if not name.startswith("source_")}
        return replace(self, pixels=pixels, slide={}, slide_digest="")

    def to_json(self) -> dict[str, Json]:
        """All fields as plain JSON values."""
        return {
            "encoder": dict(self.encoder),
            "tiling": dict(self.tiling),
            "pixels": dict(self.pixels),
            "slide": dict(self.slide),
            "slide_digest": self.slide_digest,
            "version": self.version,
            "recipe_version": self.recipe_version,
        }

    @classmethod
    def from_json(cls, tree: Mapping[str, Json]) -> Provenance:
        """The inverse of `to_json`. Raises KeyError or TypeError where fields are missing or unknown."""
        return cls(**tree)  # type: ignore[arg-type]  # the constructor checks the names

    def differences(self, other: Provenance) -> list[str]:
        """Dotted names of what differs, each with both values: "encoder.name: 'uni' != 'virchow'"."""
        return sorted(_differences("", self.to_json(), other.to_json()))

    def kind_differences(self, other: Provenance) -> list[str]:
        """As `differences`, of what `feature_digest` covers; empty where a model of one fits the other."""
        return sorted(_differences("", self._kind(), other._kind()))

    def _kind(self) -> dict[str, Json]:
        return {k: v for k, v in self.to_json().items() if k in {"encoder", "tiling", "recipe_version"}}


def canonical_json(value: Json | Mapping[str, Json]) -> str:
    """One text for one value: keys sorted, no spaces, no NaN. Raises ValueError on NaN or infinity."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=False, default=dict)


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's content, 64 hex digits. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_json(value: Json | Mapping[str, Json]) -> str:
    """SHA-256 of the canonical text, 64 hex digits."""
    return hashlib.sha256(canonical_json(value).encode("utf-8")).hexdigest()


_ABSENT: Json = "(absent)"


def _differences(prefix: str, ours: Json, theirs: Json) -> list[str]:
    if isinstance(ours, Mapping) and isinstance(theirs, Mapping):
        keys = (set(ours) | set(theirs)) - ({"version"} if not prefix else set())
        return [
            line
            for key in keys
            for line in _differences(
                f"{prefix}.{key}" if prefix else key, ours.get(key, _ABSENT), theirs.get(key, _ABSENT)
            )
        ]
    # Compared as the digest sees them: 1, 1.0 and True are equal to Python and three texts to the digest.
    return [] if canonical_json(ours) == canonical_json(theirs) else [f"{prefix}: {ours!r} != {theirs!r}"]
