"""Stain normalization: every tile of a slide through one and the same transform, fitted on a sample of that slide.

Fitted tile by tile, as most pipelines do, a tile of pure stroma would be painted as if it had nuclei; fitted batch by batch, a
tile would depend on its company. The fits are torchstain's (MIT); what they give is applied here to batches.

    macenko   optical density is unmixed into two stains, whose vectors and strengths become those of the reference
              (Macenko et al. 2009, ISBI, doi:10.1109/ISBI.2009.5193250)
    reinhard  mean and spread of the CIELAB channels become those of the reference
              (Reinhard et al. 2001, IEEE Computer Graphics and Applications 21(5), doi:10.1109/38.946629)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torchstain.torch.normalizers import TorchMacenkoNormalizer, TorchReinhardNormalizer
from torchstain.torch.utils.lab2rgb import lab2rgb
from torchstain.torch.utils.rgb2lab import rgb2lab
from torchstain.torch.utils.split import lab_merge, lab_split

from wsimil.errors import ConfigError, SlideError
from wsimil.extraction.config import ExtractConfig, StainConfig

SAMPLE_TILES = 64
_MOST_SAMPLE_PX = 500_000
_LIGHT = 240
"""Transmitted light of Macenko's method, grey values."""
_TRANSPARENT, _LEAST_STAINED, _LEAST_SPREAD = 0.15, 0.005, 0.02
"""Optical density below which Macenko's method takes a px for glass; share of px above it, and their spread, that it needs."""

Recolour: TypeAlias = Callable[[torch.Tensor], torch.Tensor]
"""Maps tiles, uint8 [n, h, w, 3] on any device, to tiles of another colour."""


def with_stain_target(config: ExtractConfig) -> ExtractConfig:
    """The same with the numbers of the stain's reference in place of its image. Raises ConfigError as `stain_target`."""
    if config.stain.method is None:
        return config
    stain = StainConfig(method=config.stain.method, target=stain_target(config.stain))
    return config.model_copy(update={"stain": stain})


def stain_target(config: StainConfig) -> tuple[float, ...]:
    """The numbers of the reference. Raises ConfigError where it cannot be read or has no stain."""
    if config.target is not None:
        return config.target
    if config.reference is None:
        built_in = TorchMacenkoNormalizer()
        return _flat(built_in.HERef, built_in.maxCRef)
    try:
        with Image.open(config.reference) as file:
            image = _on_white(file)
    except (OSError, Image.DecompressionBombError) as error:
        raise ConfigError(f"stain: reference {config.reference} cannot be read as an image: {error}") from None
    try:
        return _fit(config.method or "macenko", image[None])
    except ValueError as error:
        raise ConfigError(f"stain: reference {config.reference} {error}; give an image of stained tissue") from None


def fit_stain(config: StainConfig, sample: NDArray[np.uint8], *, slide_id: str) -> Recolour:
    """The transform of one slide, fitted on `sample`, tiles uint8 [n, h, w, 3]. Raises SlideError without enough stain."""
    method, target = config.method or "macenko", stain_target(config)
    try:
        found = _fit(method, sample)
    except ValueError as error:
        raise SlideError(
            f"slide {slide_id!r}: a sample of {len(sample)} tiles {error}, so its stain cannot be normalized; look at the slide,"
            " drop it, or extract without stain normalization"
        ) from None
    return _macenko(found, target) if method == "macenko" else _reinhard(found, target)


def _on_white(image: Image.Image) -> NDArray[np.uint8]:
    """RGB [h, w, 3]; what is transparent lets white through, as glass does, and not the black that files hold there."""
    if not image.has_transparency_data:
        return np.array(image.convert("RGB"))
    over = image.convert("RGBA")
    return np.array(Image.alpha_composite(Image.new("RGBA", over.size, "white"), over).convert("RGB"))


def _fit(method: str, tiles: NDArray[np.uint8]) -> tuple[float, ...]:
    """Numbers of a stain: two vectors and their strengths, or means and spreads. Raises ValueError where there is none."""
    step = max(1, math.ceil(math.sqrt(tiles.shape[0] * tiles.shape[1] * tiles.shape[2] / _MOST_SAMPLE_PX)))
    part = torch.from_numpy(np.ascontiguousarray(tiles[:, ::step, ::step]))
    tall = part.reshape(-1, part.shape[2], 3).permute(2, 0, 1)
    try:
        if method == "macenko":
            _refuse_unstained(part)
            normalizer = TorchMacenkoNormalizer()
            normalizer.fit(tall, Io=_LIGHT)
            found = _flat(normalizer.HERef, normalizer.maxCRef)
        else:
            normalizer = TorchReinhardNormalizer()
            normalizer.fit(tall)
            found = _flat(normalizer.target_means, normalizer.target_stds)
    except (RuntimeError, IndexError) as error:
        raise ValueError(f"shows too little stain ({error})") from None
    strengths = found[6:] if method == "macenko" else found[3:]
    if not all(math.isfinite(number) for number in found) or min(strengths) <= 1e-3:
        raise ValueError("shows too little stain")
    return found


def _refuse_unstained(tiles: torch.Tensor) -> None:
    """Two stains span a plane only where some px are stained, and not all alike."""
    density = -((tiles.reshape(-1, 3).float() + 1) / _LIGHT).log()
    stained = density[(density >= _TRANSPARENT).all(dim=1)]
    if len(stained) < _LEAST_STAINED * len(density) or float(stained.std(dim=0).max()) < _LEAST_SPREAD:
        raise ValueError("shows too little stain")


def _flat(*tensors: torch.Tensor) -> tuple[float, ...]:
    return tuple(float(number) for tensor in tensors for number in tensor.flatten())


def _macenko(found: tuple[float, ...], target: tuple[float, ...]) -> Recolour:
    (vectors, strengths), (wanted, wanted_strengths) = (
        (np.array(numbers[:6]).reshape(3, 2), np.array(numbers[6:])) for numbers in (found, target)
    )
    # Unmixing, scaling and mixing are one matrix on optical densities.
    mixed = wanted @ np.diag(wanted_strengths / strengths) @ np.linalg.pinv(vectors)
    matrix = torch.from_numpy(np.ascontiguousarray(mixed.T)).float()

    def recolour(tiles: torch.Tensor) -> torch.Tensor:
        density = (tiles.float() + 1).div_(_LIGHT).log_()
        return (density @ matrix.to(tiles.device)).exp_().mul_(_LIGHT).clamp_(max=255).to(torch.uint8)

    return recolour


def _reinhard(found: tuple[float, ...], target: tuple[float, ...]) -> Recolour:
    (mean, spread), (wanted_mean, wanted_spread) = (
        (torch.tensor(numbers[:3]).view(3, 1, 1), torch.tensor(numbers[3:]).view(3, 1, 1))
        for numbers in (found, target)
    )

    def recolour(tiles: torch.Tensor) -> torch.Tensor:
        # torchstain's colour spaces are for one image on the CPU: the tiles below each other are one.
        tall = tiles.cpu().reshape(-1, tiles.shape[2], 3).permute(2, 0, 1).float() / 255
        lab = (torch.stack(lab_split(rgb2lab(tall))) - mean) / spread * wanted_spread + wanted_mean
        again: torch.Tensor = (lab2rgb(lab_merge(*lab)) * 255).to(torch.uint8).view(tiles.shape).to(tiles.device)
        return again

    return recolour
