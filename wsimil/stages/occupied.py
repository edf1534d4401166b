"""One process at a time in a folder of results: of two that train into one, each would replace parts of the other's run."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from wsimil.errors import OutputError
from wsimil.files import output_error
from wsimil.worklist.host import hostname

LOCK = ".wsimil-lock"
_AGAIN_S = 0.02
"""A file that lies in the folder as long as it is occupied, or until the next process comes after one that was killed."""


@contextmanager
def occupied(folder: Path, *, wait_s: float = 0.0) -> Iterator[None]:
    """Keep other processes out of `folder`, which is made if need be, and removed, with those above it that were made for it,
    where nothing came into it.

    Whoever comes second is refused, after `wait_s` seconds where the first may be gone by then.
    The lock is the kernel's, which drops it with a process that dies. On file systems without locks nobody is refused.
    Raises OutputError, which says who is there.
    """
    path = folder / LOCK
    made = [place for place in (folder, *folder.parents) if not place.exists()]
    handle = _locked(path, wait_s)
    try:
        with suppress(OSError):  # on a full disk the lock holds without words
            os.ftruncate(handle, 0)
            os.pwrite(handle, _words().encode(), 0)
        yield
    finally:
        path.unlink(missing_ok=True)
        with suppress(OSError):  # something is in it
            for place in made:
                place.rmdir()
        os.close(handle)


def _words() -> str:
    return f"process {os.getpid()} on {hostname()}, since {time.strftime('%Y-%m-%d %H:%M:%S')}"


def _locked(path: Path, wait_s: float) -> int:
    until = time.monotonic() + wait_s
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle = _opened(path)
        except FileNotFoundError as error:
            if path.is_symlink():
                raise output_error(path.parent, error) from error
            continue  # whoever made the folder has left and taken it away
        except OSError as error:
            raise output_error(path.parent, error) from error
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            holder = os.pread(handle, 300, 0).decode("utf-8", "replace") or "another process"
            os.close(handle)
            if time.monotonic() < until:
                time.sleep(_AGAIN_S)
                continue
            raise OutputError(
                f"{path.parent} is in use by {holder}: wait until it ends, end it, or choose another output folder"
            ) from None
        except OSError:
            return handle  # a file system that has no locks
        if _is_there(handle, path):
            return handle
        os.close(handle)  # whoever was here has left and taken the file away


def _opened(path: Path) -> int:
    try:
        return os.open(path, os.O_CREAT | os.O_RDWR, 0o666)
    except PermissionError:
        return os.open(path, os.O_RDONLY)  # the file of another user, who is there or was killed


def _is_there(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False
