"""Which backend runs, and how a choice that cannot be kept is refused."""

from __future__ import annotations

import pytest

from wsimil.ops.dispatch import ENVIRONMENT, backend_of


def test_chunks_serve_every_device():
    assert backend_of() == "cpu"


def test_the_environment_forces_one_where_nothing_was_asked_for(monkeypatch):
    monkeypatch.setenv(ENVIRONMENT, "reference")
    assert backend_of() == "reference"
    assert backend_of("cpu") == "cpu"


def test_an_unknown_name_is_refused_with_the_place_where_it_was_given(monkeypatch):
    with pytest.raises(ValueError, match="backend: got 'cuda', wanted one of auto, reference, cpu"):
        backend_of("cuda")
    monkeypatch.setenv(ENVIRONMENT, "fast")
    with pytest.raises(ValueError, match="WSIMIL_OPS_BACKEND: got 'fast'"):
        backend_of()
