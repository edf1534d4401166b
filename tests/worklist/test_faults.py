"""Whose fault an error is, told by errors as they really come."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import torch

from wsimil.errors import OutputError, SlideError
from wsimil.files import publish
from wsimil.worklist.faults import is_fault


def raised(within: BaseException, cause: BaseException, *, hidden: bool = False) -> BaseException:
    """An error as it is after `raise within from cause`, or where it came up while `cause` was handled."""

    def fail() -> None:
        try:
            raise cause
        except BaseException as error:
            if hidden:
                raise within  # noqa: B904
            raise within from error

    with pytest.raises(type(within)) as caught:
        fail()
    return caught.value


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        OSError(errno.EIO, "Input/output error"),
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        OSError(errno.ESTALE, "Stale file handle"),
        OSError(errno.ENOTCONN, "Transport endpoint is not connected"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("CUDA error: uncorrectable ECC error encountered"),
        RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR"),
        raised(SlideError("slide 'a' cannot be read"), OSError(errno.EIO, "Input/output error")),
        raised(SlideError("slide 'a' cannot be read"), OSError(errno.EIO, "Input/output error"), hidden=True),
        raised(ValueError("x"), raised(SlideError("y"), MemoryError())),
    ],
    ids=str,
)
def test_the_machine_is_to_blame(error: BaseException) -> None:
    assert is_fault(error)


@pytest.mark.parametrize(
    "error",
    [
        SlideError("slide 'a': no mpp"),
        RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
        ValueError("out of memory is no reason here"),
        FileNotFoundError(errno.ENOENT, "No such file or directory"),
        PermissionError(errno.EACCES, "Permission denied"),
        raised(SlideError("slide 'a' cannot be read"), ValueError("bad JPEG")),
    ],
    ids=str,
)
def test_the_unit_is_to_blame(error: BaseException) -> None:
    assert not is_fault(error)


def test_a_real_disk_that_is_full_is_the_machines_fault() -> None:
    if not Path("/dev/full").exists():
        pytest.skip("there is no /dev/full here")
    with pytest.raises(OSError, match="No space") as raised_, open("/dev/full", "wb", buffering=0) as file:  # noqa: PTH123
        file.write(b"x")
    assert is_fault(raised_.value)


def test_a_place_that_cannot_be_written_is_the_machines_fault(tmp_path: Path) -> None:
    with pytest.raises(OutputError) as raised_:
        publish(b"x", tmp_path / "nowhere" / "file")
    assert is_fault(raised_.value)


def test_a_tensor_that_no_memory_holds_is_the_machines_fault() -> None:
    with pytest.raises(RuntimeError) as raised_:
        torch.empty(1 << 60)
    assert is_fault(raised_.value)


def test_a_slide_that_is_not_there_is_its_own_fault(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as raised_:
        os.stat(tmp_path / "a.svs")  # noqa: PTH116
    assert not is_fault(raised_.value)


def test_a_circle_of_causes_comes_to_an_end() -> None:
    one, two = ValueError("one"), ValueError("two")
    one.__cause__, two.__cause__ = two, one
    assert not is_fault(one)
