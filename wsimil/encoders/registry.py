"""Encoders by name: a file in `wsimil/encoders/zoo` is a family, and its `CARDS` are the encoders."""

from __future__ import annotations

import difflib
from functools import cache
from importlib import import_module
from pathlib import Path

from wsimil.encoders.base import Encoder, EncoderCard, Precision
from wsimil.errors import ConfigError

TIMM = "timm:"

_FOLDER = Path(__file__).parent / "zoo"


def families() -> list[str]:
    """Names of the files in the zoo, sorted. Nothing is imported."""
    return sorted(path.stem for path in _FOLDER.glob("*.py") if not path.stem.startswith("_"))


@cache
def _cards() -> dict[str, EncoderCard]:
    found: dict[str, EncoderCard] = {}
    for family in families():
        module = import_module(f"wsimil.encoders.zoo.{family}")
        for entry in module.CARDS:
            if entry.name in found:
                raise TypeError(f"{module.__name__}: an encoder named {entry.name!r} exists already")
            found[entry.name] = entry
    return found


def list_cards() -> list[EncoderCard]:
    """The cards of the zoo, sorted by name; neither torch nor timm is imported."""
    return sorted(_cards().values(), key=lambda entry: entry.name)


def card(name: str) -> EncoderCard:
    """The card of `name`; for "timm:<model>" it is made from timm's own configuration, which imports timm.

    Raises ConfigError for an unknown name.
    """
    if name.startswith(TIMM):
        from wsimil.encoders.any_timm import any_timm_card

        return any_timm_card(name.removeprefix(TIMM))
    known = _cards()
    if name not in known:
        close = difflib.get_close_matches(name.lower(), known, n=3)
        hint = "did you mean " + " or ".join(map(repr, close)) + "?" if close else "`wsimil list encoders` shows all;"
        raise ConfigError(f"unknown encoder {name!r}; {hint} any timm model is {TIMM}<model>")
    return known[name]


def build_encoder(
    name: str,
    *,
    weights: Path | None = None,
    device: str = "cpu",
    precision: Precision = "fp32",
    compiled: bool = False,
) -> Encoder:
    """The encoder `name` on `device`, with the weights of the local file `weights`, else with the published ones.

    `compiled` by torch.compile: the first batch of a size takes a minute, the others less than before.

    Raises ConfigError for an unknown name, EncoderError where weights are missing, gated or do not fit.
    """
    wanted = card(name)
    from wsimil.encoders.timm_encoder import TimmEncoder

    return TimmEncoder.build(wanted, weights=weights, device=device, precision=precision, compiled=compiled)
