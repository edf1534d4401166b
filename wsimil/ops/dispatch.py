"""Which implementation of an operation runs. An error in the one that was chosen is an error, never a reason to take another."""

from __future__ import annotations

import os
from functools import cache
from importlib.util import find_spec
from typing import Literal, TypeAlias, cast, get_args

import torch

Backend: TypeAlias = Literal["reference", "cpu", "triton"]
ENVIRONMENT = "WSIMIL_OPS_BACKEND"
"""Where a user forces one for all operations."""


def backend_of(device: torch.device, dtype: torch.dtype, wanted: Backend | Literal["auto"] = "auto") -> Backend:
    """`wanted`, or else what the environment forces, or else "triton" on a GPU that it serves and "cpu" anywhere else.

    "cpu" is plain torch in chunks and runs on every device. Raises ValueError for an unknown name, or for "triton" where it
    cannot run: without triton, in float64, or on a CPU outside of Triton's interpreter.
    """
    forced = os.environ.get(ENVIRONMENT, "auto") if wanted == "auto" else wanted
    if forced == "auto":
        return "triton" if _gpu_serves(device, dtype) else "cpu"
    if forced not in get_args(Backend):
        where = "backend" if wanted != "auto" else ENVIRONMENT
        raise ValueError(f"{where}: got {forced!r}, wanted one of auto, {', '.join(get_args(Backend))}")
    if forced == "triton":
        _check_triton(device, dtype)
    return cast(Backend, forced)


# A constant of a compiled graph. `torch.compiler.assume_constant_result` does just this, after it has imported the compiler,
# which takes longer than all the rest.
backend_of._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _gpu_serves(device: torch.device, dtype: torch.dtype) -> bool:
    return device.type == "cuda" and dtype != torch.float64 and _has_triton() and _capability(device) >= (8, 0)


def _check_triton(device: torch.device, dtype: torch.dtype) -> None:
    if not _has_triton():
        raise ValueError(
            "backend triton: triton is not installed; install it, or take backend cpu, which runs on every device"
        )
    if dtype == torch.float64:
        raise ValueError("backend triton: it has no float64; take backend cpu or reference")
    if device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        raise ValueError(
            f"backend triton: tensors lie on {device}, which it serves only with TRITON_INTERPRET=1 (slowly)"
        )


@cache
def _has_triton() -> bool:
    return find_spec("triton") is not None


@cache
def _capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)
