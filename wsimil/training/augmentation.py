"""Changes to the features of a training step that a bag's label should not mind."""
# ruff: noqa: F722  # jaxtyping's dimension strings are no forward references

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from wsimil.mil.batch import BagBatch
from wsimil.training.config import AugmentationConfig


@torch.no_grad()
def augmented(
    bags: BagBatch,
    config: AugmentationConfig,
    *,
    mean: Float[Tensor, " D"],
    scale: Float[Tensor, " D"],
    generator: torch.Generator,
) -> BagBatch:
    """The bags with other features, in float32; `mean` and `scale` are those that the model standardizes by.

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
