"""What every test may use."""

from __future__ import annotations

from pathlib import Path

import pytest

_SHARED = Path(__file__).resolve().parents[1].parent / "shared"


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The recorded material beside the checkout; a test that needs it is skipped where it is absent."""
    if not (_SHARED / "README.md").is_file():
        pytest.skip("needs the recorded material in ../shared, which is not here")
    return _SHARED
