"""Changes to the features of a training step that a bag's label should not mind."""
# ruff: noqa: F722  # jaxtyping's dimension strings are no forward references

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from wsimil.config import FrozenConfig
from wsimil.mil.batch import BagBatch


class AugmentationConfig(FrozenConfig):
    """What is done to features in training steps alone, nothing by default.

    `noise`: normal noise, in deviations of each feature over the training bags (in its own unit where `fit.standardize` is off).
    `drop_features`: the share of features that a bag has at their mean for one step, the same ones in all its instances.
    `mix`: each instance becomes `x + mix * u * (y - x)` with another instance y of its bag and u uniform in [0, 1).
    """

    noise: float = Field(0.0, ge=0)
    drop_features: float = Field(0.0, ge=0, lt=1)
    mix: float = Field(0.0, ge=0, le=1)

    @property
    def is_on(self) -> bool:
        """Whether anything is done."""
        return bool(self.noise or self.drop_features or self.mix)


@torch.no_grad()
def augmented(
    bags: BagBatch,
    config: AugmentationConfig,
    *,
    mean: Float[Tensor, " D"],
    scale: Float[Tensor, " D"],
    generator: torch.Generator,
) -> BagBatch:
    """The bags with other features, in float32; `mean` and `scale` are those of the training bags.

    One number of `generator` seeds draws on the device of the bags, so that they cost no transfer.
    """
    x = bags.features.float()
    seed = int(torch.randint(2**62, (), generator=generator))
    draws = torch.Generator(x.device).manual_seed(seed)
    bag_of = bags.bag_ids.long()
    lengths = bags.cu_seqlens.diff().long()
    if config.mix:
        share = torch.rand(len(x), 1, generator=draws, device=x.device) * config.mix
        places = torch.rand(len(x), generator=draws, device=x.device) * lengths[bag_of]
        others = bags.cu_seqlens[:-1].long()[bag_of] + places.long().minimum(lengths[bag_of] - 1)
        x = torch.lerp(x, x[others], share)
    if config.noise:
        x = torch.addcmul(x, torch.randn(x.shape, generator=draws, device=x.device), scale, value=config.noise)
    if config.drop_features:
        dropped = torch.rand(len(lengths), x.shape[1], generator=draws, device=x.device) < config.drop_features
        x = torch.where(dropped[bag_of], mean, x)
    return replace(bags, features=x)
