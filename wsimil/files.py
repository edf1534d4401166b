"""Atomic writes: a file is whole and at its name, or it is not there."""

from __future__ import annotations

import errno
import os
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from wsimil.errors import OutputError

_MARK = ".wsimil-tmp"
_FOREIGN_AGE_S = 24 * 3600.0


@contextmanager
def atomic_path(target: Path) -> Iterator[Path]:
    """Yield a temporary path beside `target`; on a clean exit it is synced and renamed onto `target`, else removed.

    The temporary name is hidden, keeps the suffix of `target` and names host and process, so that
    `remove_stale` can tell a crashed writer's leftover from the file of one still at work.
    Raises OutputError where the disk is full, read-only or not a folder.
    """
    temporary: Path | None = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(
            prefix=f".{target.stem[:100]}.{_host()}.{os.getpid()}.", suffix=_MARK + target.suffix, dir=target.parent
        )
        os.close(handle)
        temporary = Path(name)
        temporary.chmod(0o666 & ~_umask())
        yield temporary
        _sync(temporary)
        temporary.replace(target)
        _sync(target.parent)
    except OSError as error:
        raise output_error(target, error) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def write_bytes(target: Path, data: bytes) -> None:
    """Write `data` to `target` atomically."""
    with atomic_path(target) as temporary:
        temporary.write_bytes(data)


def write_text(target: Path, text: str) -> None:
    """Write `text` to `target` atomically, as UTF-8."""
    write_bytes(target, text.encode("utf-8"))


def remove_stale(folder: Path) -> int:
    """Remove what crashed writers left in `folder`: files of dead processes of this host, and others a day old.

    Returns how many were removed.
    """
    removed = 0
    for leftover in folder.glob(f".*{_MARK}*"):
        host, _, pid = (
            leftover.name.removesuffix(leftover.suffix).removesuffix(_MARK).rpartition(".")[0].rpartition(".")
        )
        ours = host.endswith("." + _host())
        dead = ours and pid.isdigit() and not _alive(int(pid))
        try:
            if dead or (not ours and time.time() - leftover.stat().st_mtime > _FOREIGN_AGE_S):
                leftover.unlink()
                removed += 1
        except FileNotFoundError:
            continue  # another worker was quicker
    return removed


def check_writable(folder: Path) -> None:
    """Make `folder` and write a probe into it, so that a bad output place is refused before hours of work.

    Raises OutputError.
    """
    probe = folder / f".probe.{_host()}.{os.getpid()}{_MARK}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"wsimil")
    except OSError as error:
        raise output_error(folder, error) from error
    finally:
        with suppress(OSError):
            probe.unlink(missing_ok=True)


def output_error(target: Path, error: OSError) -> OutputError:
    """The error to raise where writing `target` failed with `error`."""
    remedies = {
        errno.ENOSPC: "the disk is full: free space or choose another output folder, then run again; it continues",
        errno.EDQUOT: "your quota is used up: free space or choose another output folder, then run again; it continues",
        errno.EROFS: "the file system is read-only: choose another output folder",
        errno.EACCES: "no permission to write there: choose another output folder or change its permissions",
        errno.EPERM: "no permission to write there: choose another output folder or change its permissions",
        errno.ENOTDIR: "a part of that path is a file, not a folder: choose another output folder",
        errno.EEXIST: "a file stands where the output folder should be: choose another output folder",
        errno.ENAMETOOLONG: "the name is too long for this file system: use shorter slide ids",
    }
    reason = remedies.get(error.errno or 0, f"{error.strerror or error}")
    return OutputError(f"cannot write {target}: {reason}")


def _host() -> str:
    return socket.gethostname().replace(".", "-") or "host"


def _umask() -> int:
    current = os.umask(0o022)
    os.umask(current)
    return current


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
