"""All that sharing a folder asks of its file system; the rest of the work list touches no file of the protocol itself.

Of several processes that do one of `claim`, `create`, `publish`, `adopt` and `adopt_folder` with one name, on whatever machine,
exactly one must be told that it was first. Whatever else is read may be a little old.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from wsimil.errors import OutputError
from wsimil.files import output_error, publish, remove_folder, sync_tree
from wsimil.files import publish_file as adopt
from wsimil.files import publish_folder as adopt_folder
from wsimil.provenance import Json, sha256_file

__all__ = [
    "adopt", "adopt_folder", "age", "beat", "claim", "clock", "create", "exists", "is_name_of", "make_folder", "names", "publish",
    "read_json", "remove_folder", "sha256_of", "sync_tree",
]  # fmt: skip


def names(folder: Path) -> list[str]:
    """Of everything in a folder. Raises OutputError."""
    try:
        return os.listdir(folder)  # noqa: PTH208  # names alone, of ten thousands of files
    except OSError as error:
        raise OutputError(f"cannot list {folder}: {error.strerror or error}") from error


def exists(path: Path) -> bool:
    """Whether something is there."""
    return path.exists()


def create(path: Path, data: bytes) -> bool:
    """Make a file of that name, False where it is there; `data` are written if the disk takes them. Raises OutputError."""
    try:
        handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    except FileExistsError:
        return False
    except OSError as error:
        raise output_error(path, error) from error
    try:
        # The name is what counts: a full disk that made it, and takes no content, has given it to us.
        with suppress(OSError):
            os.write(handle, data)
    finally:
        with suppress(OSError):
            os.close(handle)
    return True


def claim(token: Path, path: Path, data: bytes) -> bool:
    """Make `path`, False where somebody else has: as one more name of `token`, a file with `data` that is this worker's alone.

    A name costs a tenth of a file. All claims of a worker have one time, that of its last claim or beat. Raises OutputError.
    """
    try:
        try:
            os.utime(token)
        except FileNotFoundError:
            _write_whole(token, data)
        os.link(token, path)
    except FileExistsError:
        # A network file system may have done it and lost the answer; whether it was so is for whoever knows its claims to tell.
        return False
    except OSError:
        return create(path, data)  # a file has no room for more names, or the disk none for the token
    return True


def _write_whole(path: Path, data: bytes) -> None:
    try:
        path.write_bytes(data)
    except OSError:
        path.unlink(missing_ok=True)  # a full disk makes a file and takes no content
        raise


def is_name_of(token: Path, path: Path) -> bool:
    """Whether a claim is this worker's."""
    try:
        return path.samefile(token)
    except OSError:
        return False


def beat(path: Path) -> None:
    """Set the time of a file to the file system's now. Raises OSError."""
    os.utime(path)


def clock(path: Path) -> float:
    """The file system's now, seconds, as it sets it on the file `path`, which is made if need be. Raises OutputError."""
    try:
        # By its handle, as the name may be taken away meanwhile.
        handle = os.open(path, os.O_CREAT | os.O_WRONLY, 0o666)
        try:
            os.utime(handle)
            return os.fstat(handle).st_mtime
        finally:
            os.close(handle)
    except OSError as error:
        raise output_error(path, error) from error


def age(path: Path, now: float) -> float:
    """Seconds from the last beat of a file to `now`, none where the file is not there. Raises OutputError."""
    try:
        # Opened, as network file systems answer `stat` from memory and look anew when a file is opened.
        handle = os.open(path, os.O_RDONLY)
        try:
            return now - os.fstat(handle).st_mtime
        finally:
            os.close(handle)
    except FileNotFoundError:
        return 0.0
    except OSError as error:
        raise OutputError(f"cannot read {path}: {error.strerror or error}") from error


def make_folder(path: Path) -> None:
    """Make a folder and those above it, unless they are there. Raises OutputError."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise output_error(path, error) from error


def read_json(path: Path) -> Mapping[str, Json]:
    """What a file says; nothing where it is not there, or not whole."""
    try:
        tree = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return tree if isinstance(tree, dict) else {}


def sha256_of(path: Path) -> str:
    """Of a file's content, 64 hex digits. Raises OutputError."""
    try:
        return sha256_file(path)
    except OSError as error:
        raise OutputError(f"{path} cannot be read back: {error.strerror or error}") from error
