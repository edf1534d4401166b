"""The convolution along tokens against torch's own in float64."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch.nn import functional as F

from wsimil.mil.layers.token_convolution import convolved

ANSWERS = """
import torch
from wsimil.mil.layers.token_convolution import convolved
for count in (1, 9, 64, 100):
    x, kernel = torch.randn(24, 4, count).half(), torch.randn(4, 1, 15).half()
    assert convolved(x, kernel).dtype == torch.float16
"""


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("count", [1, 9, 64])
def test_it_is_torchs_convolution(count: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(count)
    x, kernel = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in [(3, 4, count), (4, 1, 15)])
    got = convolved(x.to(dtype), kernel.to(dtype))
    wanted = F.conv1d(x.to(dtype).double(), kernel.to(dtype).double(), padding=7, groups=4)
    assert got.dtype == dtype
    assert (got.double() - wanted).norm() <= 4 * torch.finfo(dtype).eps * wanted.norm()


def test_half_precision_comes_to_an_end() -> None:
    subprocess.run([sys.executable, "-c", ANSWERS], check=True, timeout=120)
