"""Atomic writes: a file or a folder is whole and at its name, or it is not there.

`atomic_path` and what builds on it put the new in the place of the old. What is published stays: whoever comes second is told.
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from wsimil.errors import OutputError

_MARK = ".wsimil-tmp"
_STALE_AGE_S = 24 * 3600.0


@contextmanager
def atomic_path(target: Path, *, mode: int = 0o666) -> Iterator[Path]:
    """Yield a temporary path beside `target`; on a clean exit it is synced and renamed onto `target`, else removed.

    The temporary name is hidden, keeps the suffix of `target` and names host, container and process, so that
    `remove_stale` can tell a crashed writer's leftover from the file of one still at work.
    Raises OutputError where the disk is full, read-only or not a folder.
    """
    temporary = _temporary(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # Opened rather than made by tempfile: so the kernel applies the umask, which threads cannot read safely.
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode))
        yield temporary
        _sync(temporary)
        temporary.replace(target)
        _sync_folder(target.parent)
    except OSError as error:
        raise output_error(target, error) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextmanager
def atomic_directory(target: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `target`; on a clean exit it is synced and takes the place of `target`, else removed.

    No system can replace a full folder in one step: an old `target` is first moved aside, to a name that `remove_stale`
    knows. A crash between the two moves leaves no `target`, never a mixed one.
    Raises OutputError as `atomic_path` does.
    """
    temporary = _temporary(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary.mkdir()
        yield temporary
        for folder, _, names in os.walk(temporary, topdown=False):
            for name in names:
                _sync(Path(folder, name))
            _sync_folder(Path(folder))
        _replace_folder(temporary, target)
        _sync_folder(target.parent)
    except OSError as error:
        raise output_error(target, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_bytes(target: Path, data: bytes, *, mode: int = 0o666) -> None:
    """Write `data` to `target` atomically; who may read and write it, as the umask allows, is said by `mode`."""
    with atomic_path(target, mode=mode) as temporary:
        temporary.write_bytes(data)


def write_text(target: Path, text: str, *, mode: int = 0o666) -> None:
    """Write `text` to `target` atomically, as UTF-8; `mode` as in `write_bytes`."""
    write_bytes(target, text.encode("utf-8"), mode=mode)


def write_unsynced(target: Path, data: bytes) -> None:
    """Write `data` to `target` atomically but not to the disk: for what is written anew before long. Raises OutputError."""
    temporary = _temporary(target)
    try:
        temporary.write_bytes(data)
        temporary.replace(target)
    except OSError as error:
        raise output_error(target, error) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def publish(data: bytes, target: Path, *, within: Path | None = None) -> bool:
    """Write `data` to `target` unless something is there; False where it is.

    The temporary file lies in `within`, a folder of the same file system, or beside `target`. Raises OutputError.
    """
    temporary = _temporary(target if within is None else within / target.name)
    try:
        handle = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        return publish_file(temporary, target)
    except OSError as error:
        raise output_error(target, error) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def publish_file(source: Path, target: Path) -> bool:
    """Give a file that is whole and synced a second name, unless something is there; False where it is. Raises OutputError."""
    try:
        os.link(source, target)
    except FileExistsError:
        return False
    except OSError as error:
        # A network file system may have done it and lost the answer.
        with suppress(OSError):
            if target.samefile(source):
                return True
        raise output_error(target, error) from error
    _sync_folder(target.parent)
    return True


def publish_folder(source: Path, target: Path) -> bool:
    """Move a folder that is whole and synced to `target`, unless a folder with something in it is there; False where one is.

    Raises OutputError.
    """
    try:
        source.rename(target)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            return False
        raise output_error(target, error) from error
    _sync_folder(target.parent)
    return True


def sync_tree(folder: Path, *, entries: bool = True) -> list[Path]:
    """Bring every file of `folder` to the disk, and with `entries` the folders too; the files, sorted. Raises OutputError."""
    files: list[Path] = []
    try:
        for parent, folders, names in os.walk(folder):
            folders.sort()
            for name in sorted(names):
                files.append(Path(parent, name))
                _sync(files[-1])
            if entries:
                _sync_folder(Path(parent))
    except OSError as error:
        raise output_error(folder, error) from error
    return files


def remove_folder(folder: Path) -> None:
    """Take a folder from its place in one step, so that nobody finds half of it, and then remove it; errors are passed over."""
    aside = _temporary(folder)
    with suppress(OSError):
        folder.rename(aside)
    shutil.rmtree(aside, ignore_errors=True)


def remove_stale(folder: Path) -> int:
    """Remove what crashed writers left in `folder`: of dead processes of this host, and whatever is a day old.

    Returns how many files and folders were removed.
    """
    removed = 0
    for leftover in folder.glob(f".*{_MARK}*"):
        name = leftover.name.removesuffix(leftover.suffix).removesuffix(_MARK)
        host, _, pid = name.rpartition(".")[0].rpartition(".")
        dead = host.endswith("." + _host()) and pid.isdigit() and not _alive(int(pid))
        try:
            # A day old counts for this host too: the number of a dead process is given to another one in time.
            if dead or time.time() - leftover.stat().st_mtime > _STALE_AGE_S:
                _remove(leftover)
                removed += 1
        except FileNotFoundError:
            continue  # another worker was quicker
        except OSError as error:
            raise output_error(leftover, error) from error
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


def printable(text: str) -> str:
    """`text` with bytes of file names that are no UTF-8 written as escapes, so that it can be encoded."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _host() -> str:
    """This machine, and the namespace that its process numbers are of: in a container they are others', of the same machine."""
    name = socket.gethostname().replace(".", "-") or "host"
    with suppress(OSError):  # not every system has namespaces
        return f"{name}-{Path('/proc/self/ns/pid').stat().st_ino}"
    return name


def _temporary(target: Path) -> Path:
    # Cut by bytes: file systems allow 255 of them, and a letter takes up to four.
    stem = target.stem.encode("utf-8", "surrogateescape")[:100].decode("utf-8", "ignore")
    return target.with_name(f".{stem}.{_host()}.{os.getpid()}.{secrets.token_hex(8)}{_MARK}{target.suffix}")


def _replace_folder(new: Path, target: Path) -> None:
    while True:
        aside = _temporary(target)
        with suppress(FileNotFoundError):
            target.rename(aside)
        try:
            new.rename(target)
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST):  # another writer was quicker: replace its folder
                _remove(aside)
                continue
            with suppress(OSError):
                aside.rename(target)
            raise
        _remove(aside)
        return


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


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


def _sync_folder(path: Path) -> None:
    try:
        _sync(path)
    except OSError as error:
        # Some network file systems cannot sync a folder and say so; the data itself is safe by then.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
