"""What tests of studies share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from wsimil.cli import app


@dataclass(frozen=True, slots=True, kw_only=True)
class Material:
    """Features of 36 slides of 27 patients, what is known of them, and three folds."""

    features: Path
    cohort: Path
    splits: Path

    def settings(self) -> dict[str, object]:
        """As a study names them."""
        return {"features": str(self.features), "cohort": str(self.cohort), "splits": str(self.splits)}


@pytest.fixture
def material(feature_study: Callable[..., tuple[Path, Path]], tmp_path: Path) -> Material:
    features, cohort = feature_study()
    splits = tmp_path / "splits.json"
    command = ["splits", "make", str(cohort), "-o", str(splits), "--folds", "3"]
    assert CliRunner().invoke(app, command).exit_code == 0
    return Material(features=features, cohort=cohort, splits=splits)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """One thread for torch, so that sums have one order whoever makes them."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
