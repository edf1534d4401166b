"""Pseudonyms of slides and patients: the same name for the same id as long as the key is the same, and no way back without it.

A name is a keyed hash (HMAC-SHA-256, RFC 2104) of the id, cut to 60 bits: who has the names and guesses an id cannot confirm it
without the key, as they could with a plain hash. The file with the key also lists which id every name stands for.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from wsimil.errors import ConfigError, OutputError
from wsimil.files import write_text

_SCHEMA = "wsimil/pseudonyms/1"
_KEY_BYTES = 32
_LETTERS = 12
_LENGTH = len("anon-") + _LETTERS
_FOLDER = "(features)"
_PRIVATE = 0o600
_NAME = re.compile(rf"anon-[a-z2-7]{{{_LETTERS}}}")


@dataclass(slots=True, eq=False)
class Pseudonyms:
    """Names by `key`, and the ids `known` by their names so far. Ids and names are unique, or ConfigError is raised."""

    key: bytes = field(repr=False)
    known: dict[str, str] = field(default_factory=dict, repr=False)

    def name(self, identity: str) -> str:
        """The name of a slide or a patient, such as "anon-7kq2w5ztmb4x"."""
        digest = hmac.new(self.key, identity.encode("utf-8", "surrogatepass"), hashlib.sha256).digest()
        name = "anon-" + base64.b32encode(digest).decode("ascii").lower()[:_LETTERS]
        if self.known.setdefault(name, identity) != identity:
            raise ConfigError(
                f"two ids have the pseudonym {name}, which happens once in 10^12 pairs; begin with a new file of pseudonyms"
            )
        return name

    def identity(self, name: str) -> str:
        """The inverse, for names given before. Raises KeyError."""
        return self.known[name]

    def inert(self, text: str, identities: Iterable[str], *, folder: Path | None = None) -> str:
        """`text`, such as a message, with the names of `identities` in place of them, quoted or not, and without `folder`.

        All at once and the longest first: no part of an id stays where the folder is called by another part of it, and names
        that stand in the text stay whole, whatever short id their letters hold.
        """
        instead = {spelled: self.name(one) for one in identities for spelled in (repr(one)[1:-1], one)}
        parts = [(len(spelled), re.escape(spelled)) for spelled in instead]
        parts += [(_LENGTH, _NAME.pattern), (len(_FOLDER), re.escape(_FOLDER))]
        if folder is not None and folder != Path():  # of files in the current folder a text holds the names alone
            parts.append((len(str(folder)), rf"(?<!\w){re.escape(str(folder))}(?=[/\\\s'\":;,)\]]|\.?$|\.\s)"))
            instead.setdefault(str(folder), _FOLDER)
        pattern = "|".join(part for _, part in sorted(parts, reverse=True))
        return re.sub(pattern, lambda found: instead.get(found[0], found[0]), text)


def is_pseudonym(text: str) -> bool:
    """Whether `text` has the form of a name, whatever key it may be of."""
    return _NAME.fullmatch(text) is not None


def open_pseudonyms(path: Path) -> Pseudonyms:
    """The key and names in `path`; a new key where there is no such file yet. Raises ConfigError where it is something else."""
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
        if tree["schema"] != _SCHEMA:
            raise ConfigError(f"pseudonyms {path}: schema {tree['schema']!r}, wanted {_SCHEMA!r}; update wsimil")
        key = bytes.fromhex(tree["key"])
        known = {str(name): str(identity) for name, identity in tree["ids"].items()}
    except FileNotFoundError:
        return Pseudonyms(secrets.token_bytes(_KEY_BYTES))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"pseudonyms {path} cannot be read ({error}); give the file that --pseudonymize wrote, or a name that is free"
        ) from error
    if len(key) != _KEY_BYTES:
        raise ConfigError(f"pseudonyms {path}: a key of {len(key)} bytes, wanted {_KEY_BYTES}; restore it from a copy")
    found = Pseudonyms(key, known)
    for name, identity in [*known.items()]:
        if found.name(identity) != name:
            raise ConfigError(
                f"pseudonyms {path}: {name} is not what its key makes of the id beside it; restore the file from a copy"
            )
    return found


def save_pseudonyms(path: Path, names: Pseudonyms) -> None:
    """Write key and names to `path`, to be read by its owner alone, with those that another command put there meanwhile.

    Raises ConfigError where that one began the file with another key: the way back from its names is not written over. Raises
    OutputError.
    """
    there = open_pseudonyms(path) if path.exists() else names
    if there.key != names.key:
        raise ConfigError(
            f"pseudonyms {path}: another command has just begun this file with a key of its own; run this one again"
        )
    known = {**there.known, **names.known}
    tree = {"schema": _SCHEMA, "key": names.key.hex(), "ids": dict(sorted(known.items()))}
    write_text(path, json.dumps(tree, indent=1, ensure_ascii=False) + "\n", mode=_PRIVATE)


def refuse_beside_results(path: Path, out: Path) -> None:
    """Raise OutputError where the file of names would lie in the folder that is meant to go out without it."""
    if path.resolve().is_relative_to(out.resolve()):
        raise OutputError(f"pseudonyms {path} would lie among the results in {out}; keep them somewhere else")
