"""Every backend is a feature store."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest

from wsimil.store import Backend, FeatureStore, open_store
from wsimil.testing.store_laws import LAWS, Law


@pytest.mark.parametrize("backend", ["hdf5", "zarr"])
@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
def test_every_backend_holds(law: Law, backend: Backend, tmp_path: Path) -> None:
    def open_here(folder: Path, mode: Literal["r", "w"]) -> FeatureStore:
        return open_store(folder, mode=mode, backend=backend)

    law(open_here, tmp_path)
