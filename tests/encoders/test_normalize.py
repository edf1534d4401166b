"""Pixels as the model sees them, whatever the memory they lie in."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from wsimil.encoders.normalize import Normalize

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def wanted(tiles: torch.Tensor) -> torch.Tensor:
    exact = (tiles.double() / 255 - torch.tensor(MEAN).double()) / torch.tensor(STD).double()
    return exact.permute(0, 3, 1, 2)


@pytest.mark.parametrize("shape", [(1, 8, 8, 3), (5, 63, 63, 3), (3, 224, 224, 3)])
def test_pixels_are_normalized_by_channel(shape: tuple[int, ...]) -> None:
    tiles = torch.randint(0, 256, shape, dtype=torch.uint8)
    found = Normalize(MEAN, STD, torch.device("cpu"))(tiles)
    assert found.dtype == torch.float32
    assert found.is_contiguous(memory_format=torch.channels_last)
    np.testing.assert_allclose(found.numpy(), wanted(tiles).numpy(), atol=2e-6)


def test_tiles_that_are_no_contiguous_memory_are_read_right() -> None:
    tiles = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8).permute(0, 2, 3, 1)
    np.testing.assert_allclose(
        Normalize(MEAN, STD, torch.device("cpu"))(tiles).numpy(), wanted(tiles).numpy(), atol=2e-6
    )


def test_sizes_may_change_from_call_to_call_and_threads_do_not_share_memory() -> None:
    normalize = Normalize(MEAN, STD, torch.device("cpu"))

    def work(seed: int) -> float:
        generator = torch.Generator().manual_seed(seed)
        side = (16, 40, 24)[seed % 3]
        tiles = torch.randint(0, 256, (1 + seed % 4, side, side, 3), dtype=torch.uint8, generator=generator)
        return float((normalize(tiles) - wanted(tiles)).abs().max())

    with ThreadPoolExecutor(4) as pool:
        assert max(pool.map(work, range(200))) < 2e-6
