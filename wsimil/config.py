"""Configuration: YAML and overrides become one frozen object, or one message that names file and key."""

from __future__ import annotations

import difflib
import re
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError, ValidationInfo, field_validator

from wsimil.errors import ConfigError

ConfigT = TypeVar("ConfigT", bound="FrozenConfig")

_NO_PLAIN_NUMBER = re.compile(r"[-+]?(0[0-7_]+|[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?)")
"""What YAML 1.1 takes for octal, and for sexagesimal."""


class FrozenConfig(BaseModel):
    """Base of every config: immutable, an unknown key is an error, numbers are finite."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_as_number(cls, value: object, info: ValidationInfo) -> object:
        annotation = cls.model_fields[info.field_name or ""].annotation
        if isinstance(value, bool) and ({int, float} & {annotation, *get_args(annotation)}):
            raise ValueError("wanted a number")
        return value

    def to_yaml(self) -> str:
        """The resolved config as YAML, keys in the order of their declaration."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def load_config(
    cls: type[ConfigT],
    path: Path | None = None,
    *,
    overrides: Sequence[str] = (),
    given: Mapping[str, JsonValue] | None = None,
) -> ConfigT:
    """Read `path`, lay `overrides` ("a.b=value", YAML values) over it, then `given`, whose None values are dropped.

    `given` holds what was typed as an option of its own; its keys may be dotted.
    Raises ConfigError, which names the file or the option, the key, what was got and what was wanted.
    """
    tree: dict[str, JsonValue] = {} if path is None else _read_yaml(path)
    sources: dict[str, str] = {}
    for override in overrides:
        key, value = _split_override(override)
        put(tree, key, value, source="--set")
        sources[key] = "--set"
    for key, given_value in (given or {}).items():
        if given_value is not None:
            put(tree, key, given_value, source="command line")
            sources[key] = "command line"
    return parse_config(cls, tree, source=str(path) if path else "command line", sources=sources)


def parse_config(
    cls: type[ConfigT],
    tree: Mapping[str, JsonValue],
    *,
    source: str,
    prefix: str = "",
    sources: Mapping[str, str] | None = None,
) -> ConfigT:
    """Check a mapping against `cls`; `source` and `prefix` say in messages where it stood.

    Raises ConfigError, one line for each wrong key.
    """
    try:
        return cls.model_validate(dict(tree))
    except ValidationError as error:
        lines = [_line(cls, tree, dict(detail), source, prefix, sources or {}) for detail in error.errors()]
        raise ConfigError("\n".join(lines)) from None


def _read_yaml(path: Path) -> dict[str, JsonValue]:
    try:
        tree = yaml.load(path.read_text(encoding="utf-8-sig"), Loader=_Loader)  # noqa: S506  # a SafeLoader
    except FileNotFoundError:
        raise ConfigError(f"config file {path} does not exist") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"config file {path} cannot be read: {error}") from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date that no calendar has
        raise ConfigError(f"config file {path} is not valid YAML: {' '.join(str(error).split())}") from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ConfigError(
            f"config file {path}: wanted a mapping of keys to values at the top, got {type(tree).__name__}"
        )
    odd = [key for key in tree if not isinstance(key, str)]
    if odd:
        raise ConfigError(f"config file {path}: wanted keys that are text, got {odd[0]!r}")
    return tree


class _Loader(yaml.SafeLoader):
    """YAML keeps the last of two equal keys and drops the first without a word, and takes 010 for 8 and 1:30 for 90.

    Here two equal keys are refused, and such numbers stay as they were typed: the one is 10 then, the other none.
    """

    def resolve(self, kind: type[yaml.Node], value: str, implicit: tuple[bool, bool]) -> str:
        if kind is yaml.ScalarNode and implicit[0] and _NO_PLAIN_NUMBER.fullmatch(value):
            return str(self.DEFAULT_SCALAR_TAG)
        return str(super().resolve(kind, value, implicit))  # type: ignore[no-untyped-call]  # PyYAML has no types

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, object]:
        seen: set[tuple[str, str]] = set()
        for key, _ in node.value:
            name = (key.tag, str(key.value))
            if name in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key.value!r} stands there twice", key.start_mark
                )
            seen.add(name)
        return super().construct_mapping(node, deep)


def _split_override(text: str) -> tuple[str, JsonValue]:
    key, equals, value = text.partition("=")
    if not equals or not all(part.strip() for part in key.split(".")):
        raise ConfigError(f"--set {text!r}: wanted key=value, for example --set fit.epochs=20")
    try:
        parsed: JsonValue = yaml.load(value, Loader=_Loader)  # noqa: S506  # a SafeLoader
    except (yaml.YAMLError, ValueError):  # ValueError: what looks like a date and is none
        parsed = value
    return key.strip(), parsed


def put(tree: dict[str, JsonValue], dotted: str, value: JsonValue, *, source: str) -> None:
    """Lay a value into nested mappings at "a.b". Raises ConfigError, which names `source`, where something else stands at "a"."""
    *parents, leaf = dotted.split(".")
    node = tree
    for name in parents:
        child = node.get(name)
        if child is None:  # also a section whose keys are all commented out
            child = node[name] = {}
        if not isinstance(child, dict):
            raise ConfigError(f"{source}: {dotted}: {name!r} holds {child!r}, which has no keys below it")
        node = child
    node[leaf] = value


def _line(
    cls: type[BaseModel],
    tree: Mapping[str, JsonValue],
    detail: Mapping[str, object],
    source: str,
    prefix: str,
    sources: Mapping[str, str],
) -> str:
    loc = tuple(str(part) for part in detail["loc"])  # type: ignore[attr-defined]  # pydantic types it as object
    key = ".".join(loc)
    related = (
        name for dotted, name in sources.items() if f"{key}.".startswith(f"{dotted}.") or dotted.startswith(f"{key}.")
    )
    where = next(related, source)
    shown = ".".join(part for part in (prefix, key) if part) or "(the whole)"
    if detail["type"] == "extra_forbidden":
        known = sorted(_fields_at(cls, loc[:-1]))
        close = difflib.get_close_matches(loc[-1], known, n=1)
        wanted = f"did you mean {close[0]!r}?" if close else "known keys: " + (", ".join(known) or "none")
        return f"{where}: {shown}: unknown key, got {_get(tree, loc)!r}; {wanted}"
    if detail["type"] == "missing":
        return f"{where}: {shown}: missing; it has no default"
    if detail["type"] == "model_type" and detail["input"] is None:
        known = sorted(_fields_at(cls, loc))
        return f"{where}: {shown}: it has no keys; leave it out for its defaults, or give some of: {', '.join(known)}"
    message = str(detail["msg"]).removeprefix("Value error, ")
    return f"{where}: {shown}: {message[0].lower() + message[1:]}, got {detail['input']!r}"


def _get(tree: JsonValue | Mapping[str, JsonValue], loc: Sequence[str]) -> JsonValue:
    node: object = tree
    for part in loc:
        node = node.get(part) if isinstance(node, Mapping) else None
    return node  # type: ignore[return-value]  # a leaf of a JSON tree


def _fields_at(cls: type[BaseModel], loc: Sequence[str]) -> set[str]:
    """Names of the fields of the config that sits at `loc` below `cls`."""
    annotation: object = cls
    for part in loc:
        if get_origin(annotation) is dict:
            annotation = get_args(annotation)[1]
            continue
        model = _model_in(annotation)
        field = model.model_fields.get(part) if model else None
        annotation = field.annotation if field else None
    model = _model_in(annotation)
    return set(model.model_fields) if model else set()


def _model_in(annotation: object) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((model for arg in get_args(annotation) if (model := _model_in(arg))), None)
