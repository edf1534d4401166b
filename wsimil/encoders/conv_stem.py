"""The convolutional stem of CTransPath, in place of Swin's patch embedding.

Wang et al. 2022, Medical Image Analysis 81:102559: two 3x3 convolutions of stride 2 with batch norm and ReLU, then a 1x1
convolution. The names of its parameters (proj.0 ... proj.6, norm) are those of the published weights.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn


class ConvStem(nn.Module):
    """Pixels [b, 3, s, s] to tokens [b, s/4, s/4, embed_dim]."""

    def __init__(
        self,
        *,
        img_size: int | tuple[int, int],
        patch_size: int,
        in_chans: int,
        embed_dim: int,
        norm_layer: Callable[..., nn.Module] | None,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
        **_: object,
    ) -> None:
        super().__init__()
        height, width_px = (img_size, img_size) if isinstance(img_size, int) else img_size
        self.grid_size = (height // patch_size, width_px // patch_size)
        layers: list[nn.Module] = []
        width = embed_dim // 8
        for _halving in range(2):
            layers += [
                nn.Conv2d(in_chans, width, 3, stride=2, padding=1, bias=False, device=device, dtype=dtype),
                nn.BatchNorm2d(width, device=device, dtype=dtype),
                nn.ReLU(),
            ]
            in_chans, width = width, 2 * width
        layers.append(nn.Conv2d(in_chans, embed_dim, 1, device=device, dtype=dtype))
        self.proj = nn.Sequential(*layers)
        self.norm = norm_layer(embed_dim, device=device, dtype=dtype) if norm_layer else nn.Identity()

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Map pixels to a grid of tokens, channels last."""
        tokens: torch.Tensor = self.norm(self.proj(pixels).permute(0, 2, 3, 1))
        return tokens
