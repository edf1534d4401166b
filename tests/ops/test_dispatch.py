"""Which backend runs, and how a choice that cannot be kept is refused."""

from __future__ import annotations

import pytest
import torch

from wsimil.ops import dispatch
from wsimil.ops.dispatch import ENVIRONMENT, backend_of

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


def test_a_cpu_is_served_by_chunks():
    assert backend_of(CPU, torch.float32) == "cpu"


@pytest.mark.parametrize(
    ("capability", "dtype", "wanted"),
    [
        ((9, 0), torch.float32, "triton"),
        ((8, 0), torch.bfloat16, "triton"),
        ((7, 5), torch.float32, "cpu"),
        ((9, 0), torch.float64, "cpu"),
    ],
)
def test_a_gpu_is_served_by_kernels_where_they_run(monkeypatch, capability, dtype, wanted):
    monkeypatch.setattr(dispatch, "_capability", lambda device: capability)
    monkeypatch.setattr(dispatch, "_has_triton", lambda: True)
    assert backend_of(GPU, dtype) == wanted


def test_without_triton_a_gpu_is_served_by_chunks(monkeypatch):
    monkeypatch.setattr(dispatch, "_capability", lambda device: (9, 0))
    monkeypatch.setattr(dispatch, "_has_triton", lambda: False)
    assert backend_of(GPU, torch.float32) == "cpu"
    with pytest.raises(ValueError, match="triton is not installed"):
        backend_of(GPU, torch.float32, "triton")


def test_triton_is_refused_where_it_cannot_run(monkeypatch):
    monkeypatch.setattr(dispatch, "_has_triton", lambda: True)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ValueError, match="no float64"):
        backend_of(CPU, torch.float64, "triton")
    with pytest.raises(ValueError, match="TRITON_INTERPRET=1"):
        backend_of(CPU, torch.float32, "triton")


def test_the_environment_forces_one_where_nothing_was_asked_for(monkeypatch):
    monkeypatch.setenv(ENVIRONMENT, "reference")
    assert backend_of(CPU, torch.float32) == "reference"
    assert backend_of(CPU, torch.float32, "cpu") == "cpu"


def test_an_unknown_name_is_refused_with_the_place_where_it_was_given(monkeypatch):
    with pytest.raises(ValueError, match="backend: got 'cuda', wanted one of auto, reference, cpu, triton"):
        backend_of(CPU, torch.float32, "cuda")
    monkeypatch.setenv(ENVIRONMENT, "fast")
    with pytest.raises(ValueError, match="WSIMIL_OPS_BACKEND: got 'fast'"):
        backend_of(CPU, torch.float32)
