"""Methods by name: the name of a method is the name of its file in `wsimil/mil/methods`."""

from __future__ import annotations

import ast
import difflib
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from wsimil.config import FrozenConfig, parse_config
from wsimil.errors import ConfigError

if TYPE_CHECKING:
    from pydantic import JsonValue

    from wsimil.mil.base import MILModel

_FOLDER = Path(__file__).parent / "methods"


def names() -> list[str]:
    """All methods, sorted. Nothing is imported."""
    return sorted(path.stem for path in _FOLDER.glob("*.py") if not path.stem.startswith("_"))


def summary(name: str) -> str:
    """The first line of a method's docstring; torch is not imported. Raises ConfigError for an unknown name."""
    _check(name)
    text = ast.get_docstring(ast.parse((_FOLDER / f"{name}.py").read_text(encoding="utf-8"))) or ""
    return text.partition("\n")[0]


def method_class(name: str) -> type[MILModel]:
    """The one MILModel that the method's file defines. Raises ConfigError for an unknown name."""
    from wsimil.mil.base import MILModel

    _check(name)
    module = import_module(f"wsimil.mil.methods.{name}")
    found = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, MILModel) and value.__module__ == module.__name__
    ]
    if len(found) != 1:
        raise TypeError(f"{module.__name__} defines {len(found)} methods; a file holds one")
    return found[0]


def config_class(name: str) -> type[FrozenConfig]:
    """The hyperparameters of a method. Raises ConfigError for an unknown name."""
    return method_class(name).Config


def build(
    name: str,
    config: Mapping[str, JsonValue] | FrozenConfig,
    *,
    in_dim: int,
    num_classes: int,
    seed: int = 0,
    source: str = "method",
) -> MILModel:
    """A new model on CPU in float32, its parameters drawn from `seed`; torch's global generator is left as it was.

    `source` says in messages where `config` stood. Raises ConfigError for an unknown name or a config that does not fit.
    """
    import torch

    method = method_class(name)
    if not isinstance(config, FrozenConfig):
        config = parse_config(method.Config, config, source=source)
    elif not isinstance(config, method.Config):
        raise ConfigError(f"method {name!r} takes a {method.Config.__name__}, got a {type(config).__name__}")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return method(config, in_dim=in_dim, num_classes=num_classes)


def _check(name: str) -> None:
    known = names()
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {close[0]!r}?" if close else "known methods: " + ", ".join(known)
        raise ConfigError(f"unknown method {name!r}; {hint}")
