"""Whose fault an error is: the unit's, which any other worker would meet too, or that of the machine it happened on."""

from __future__ import annotations

import errno
from collections.abc import Iterator

from wsimil.errors import OutputError

_MACHINE = {
    errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.ENOMEM, errno.ENODEV, errno.ENXIO, errno.EMFILE, errno.ENFILE,
    errno.ESTALE, errno.ETIMEDOUT, errno.EREMOTEIO, errno.ECONNRESET, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENOTCONN,
}  # fmt: skip
_OF_A_GPU = ("cuda", "cudnn", "cublas", "uncorrectable ecc", "nvml", "hip error", "out of memory")


def is_fault(error: BaseException) -> bool:
    """Whether the machine is to blame: no space, no memory, a disk or a GPU that fails, a place that cannot be written."""
    for one in _chain(error):
        if isinstance(one, MemoryError | OutputError):
            return True
        if isinstance(one, OSError) and one.errno in _MACHINE:
            return True
        # torch tells of its devices by RuntimeError, and by the text of it.
        if isinstance(one, RuntimeError) and any(word in str(one).lower() for word in _OF_A_GPU):
            return True
    return False


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or current.__context__
