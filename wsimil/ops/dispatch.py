"""Which implementation of an operation runs. An error in the one that was chosen is an error, never a reason to take another."""

from __future__ import annotations

import os
from typing import Literal, TypeAlias, cast, get_args

Backend: TypeAlias = Literal["reference", "cpu"]
"""The definition, or chunks in plain torch, which run on every device."""
ENVIRONMENT = "WSIMIL_OPS_BACKEND"
"""Where a user forces one for all operations."""


def backend_of(wanted: Backend | Literal["auto"] = "auto") -> Backend:
    """`wanted`, or else what the environment forces, or else "cpu". Raises ValueError for an unknown name."""
    forced = os.environ.get(ENVIRONMENT, "auto") if wanted == "auto" else wanted
    if forced == "auto":
        return "cpu"
    if forced not in get_args(Backend):
        where = "backend" if wanted != "auto" else ENVIRONMENT
        raise ValueError(f"{where}: got {forced!r}, wanted one of auto, {', '.join(get_args(Backend))}")
    return cast(Backend, forced)
