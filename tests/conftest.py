"""What every test may use."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import tifffile
from scipy import ndimage

_SHARED = Path(__file__).resolve().parents[1].parent / "shared"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that take minutes are begun first, so that no process begins one when all others have ended."""
    items.sort(key=lambda item: item.get_closest_marker("long") is None)


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The recorded material beside the checkout; a test that needs it is skipped where it is absent."""
    if not (_SHARED / "README.md").is_file():
        pytest.skip("needs the recorded material in ../shared, which is not here")
    return _SHARED


def write_slide(
    path: Path, *, size_px: tuple[int, int] = (1024, 768), mpp: float | None = 0.5, tissue: bool = True, seed: int = 0
) -> Path:
    """A tiled pyramidal JPEG TIFF: one ellipse of textured, stained tissue on a light background; `size_px` is (w, h)."""
    rng = np.random.default_rng(seed)
    width, height = size_px
    image = np.full((height, width, 3), 243, np.uint8)
    if tissue:
        y, x = np.ogrid[:height, :width]
        inside = ((x - width / 2) / (0.42 * width)) ** 2 + ((y - height / 2) / (0.4 * height)) ** 2 < 1
        grain = ndimage.gaussian_filter(rng.normal(size=(height, width)), 3)
        grain = (grain - grain.min()) / np.ptp(grain)
        stain = np.stack([150 + 80 * grain, 70 + 110 * grain, 150 + 60 * grain], axis=-1).astype(np.uint8)
        image[inside] = stain[inside]
    path.parent.mkdir(parents=True, exist_ok=True)
    facts = {} if mpp is None else {"resolution": (1e4 / mpp, 1e4 / mpp), "resolutionunit": "CENTIMETER"}
    with tifffile.TiffWriter(path) as file:
        for level in (1, 4):
            file.write(
                image[::level, ::level], tile=(256, 256), compression="jpeg", photometric="rgb", metadata=None,
                subfiletype=int(level > 1), **facts,
            )  # fmt: skip
    return path


@pytest.fixture(scope="session")
def make_slide() -> Callable[..., Path]:
    """`write_slide`, for tests that need slides of their own."""
    return write_slide


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """SIGINT as a terminal has it; a job in the background of a script inherits one that is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
