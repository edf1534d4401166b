"""Whose fault an error is: the unit's, which any other worker would meet too, or that of the machine it happened on."""

from __future__ import annotations

import errno
from collections.abc import Iterator

from wsimil.errors import OutputError

_MACHINE = {
    getattr(errno, name)
    for name in (
        "EIO", "ENOSPC", "EDQUOT", "EROFS", "ENOMEM", "ENODEV", "ENXIO", "EMFILE", "ENFILE", "ESTALE", "ETIMEDOUT", "EREMOTEIO",
        "ECONNRESET", "EHOSTDOWN", "EHOSTUNREACH", "ENOTCONN",
    )
    if hasattr(errno, name)  # not every system has all of them
}  # fmt: skip
_OF_TORCH = (
    "cuda", "cudnn", "cublas", "uncorrectable ecc", "nvml", "hip error", "out of memory", "can't allocate memory",
)  # fmt: skip


def is_fault(error: BaseException) -> bool:
    """Whether the machine is to blame: no space, no memory, a disk or a GPU that fails, a place that cannot be written."""
    for one in _chain(error):
        if isinstance(one, MemoryError | OutputError):
            return True
        if isinstance(one, OSError) and one.errno in _MACHINE:
            return True
        # torch tells of its devices, and of memory, by RuntimeError and the text of it.
        if isinstance(one, RuntimeError) and any(word in str(one).lower() for word in _OF_TORCH):
            return True
    return False


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or current.__context__
