"""Standardization of features as a part of the model: what was fitted travels in its state."""
# ruff: noqa: F722  # jaxtyping's dimension strings are no forward references

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor, nn

from wsimil.errors import FeatureError, ModelError

_FLAT = 1e-3
_HALF_STEP = 2.0**-11


class Standardize(nn.Module):
    """`(x - mean) / scale` for each feature, in the dtype of the model; `is_identity` until fitted or loaded with others."""

    mean: Tensor
    scale: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("scale", torch.ones(dim))
        self.is_identity = True

    def forward(self, x: Float[Tensor, "T D"]) -> Float[Tensor, "T D"]:
        """`x` standardized. Raises ModelError where D differs."""
        if x.shape[1] != len(self.mean):
            raise ModelError(
                f"the model was made for {len(self.mean)} features an instance, got {x.shape[1]};"
                " give it features of the encoder that it was trained on"
            )
        x = x.to(self.mean.dtype)
        if self.is_identity:
            return x
        # One pass over all instances in place of two. Rounding -mean / scale first costs no more than the rounding of x did.
        factor = self.scale.reciprocal()
        return torch.addcmul(-self.mean * factor, x, factor)

    @torch.no_grad()
    def fit(
        self,
        bags: Iterable[Tensor | NDArray[np.floating]],
        *,
        weigh: Literal["instances", "bags"] = "bags",
    ) -> None:
        """Mean and standard deviation over the instances of `bags`, each [n, D], read once and one at a time.

        With "bags" each bag counts the same however many instances it has, with "instances" each instance does. A feature
        that hardly varies (its deviation is below a thousandth of the typical one, or below the step of float16 at its mean)
        is scaled by the typical deviation: chance differences in it are not blown up. Moments are kept in float64 and merged
        pairwise: Chan, Golub & LeVeque 1983. Raises FeatureError for no instances, another D, or values that are not finite.
        """
        weight = 0.0
        mean = torch.zeros(len(self.mean), dtype=torch.float64)
        square = torch.zeros_like(mean)
        for number, bag in enumerate(bags):
            x = (
                torch.from_numpy(bag.astype(np.float64))
                if isinstance(bag, np.ndarray)
                else bag.detach().to("cpu").double()
            )
            if x.ndim != 2 or x.shape[1] != len(mean):
                raise FeatureError(f"bag {number}: wanted features [n, {len(mean)}], got {list(x.shape)}")
            if len(x) == 0:
                continue
            added = 1.0 if weigh == "bags" else float(len(x))
            bag_mean = x.mean(dim=0)
            bag_square = (x - bag_mean).square().mean(dim=0) * added
            weight, before = weight + added, weight
            delta = bag_mean - mean
            mean += delta * (added / weight)
            square += bag_square + delta.square() * (before * added / weight)
        if weight == 0:
            raise FeatureError("no instances to standardize features by; every bag is empty")
        deviation = (square / weight).sqrt()
        if not (mean.isfinite() & deviation.isfinite()).all():
            raise FeatureError("features to standardize by hold NaN or infinity; extract the slides again")
        typical = deviation.square().mean().sqrt()
        typical = typical if typical > 0 else torch.ones_like(typical)
        flat = deviation <= torch.maximum(_FLAT * typical, _HALF_STEP * mean.abs())
        self.mean.copy_(mean)
        self.scale.copy_(torch.where(flat, typical, deviation))
        self.is_identity = False

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args)
        self.is_identity = bool((self.mean == 0).all() and (self.scale == 1).all())
