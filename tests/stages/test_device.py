"""What is said of the machine that a stage runs on."""

from __future__ import annotations

import pytest
import torch

from tests.stages.notes import Notes
from wsimil.stages.device import tell_slow_precision


@pytest.mark.parametrize(
    ("device", "precision", "machine", "capability", "wanted"),
    [
        ("cpu", "bfloat16", "x86_64", "AVX2", 1),
        ("cpu", "fp16", "AMD64", "DEFAULT", 1),
        ("cpu", "bf16", "x86_64", "AVX512", 0),
        ("cpu", "bf16", "aarch64", "DEFAULT", 0),
        ("cpu", "fp32", "x86_64", "AVX2", 0),
        ("cpu", "float32", "x86_64", "AVX2", 0),
        ("cuda:0", "bf16", "x86_64", "AVX2", 0),
    ],
)
def test_a_precision_that_the_cpu_was_not_made_for_is_told(
    monkeypatch: pytest.MonkeyPatch, device: str, precision: str, machine: str, capability: str, wanted: int
) -> None:
    """Nothing else tells why it takes so long there."""
    monkeypatch.setattr("platform.machine", lambda: machine)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    notes = Notes()
    tell_slow_precision(device, precision, notes)
    assert [text.partition(":")[0] for text in notes.said] == [f"precision {precision}"] * wanted
