"""The same method with new random weights: a map that looks the same with them says nothing of what was learned.

Adebayo et al. 2018, "Sanity checks for saliency maps", NeurIPS, arXiv:1810.03292; here all weights are drawn anew at once.
"""

from __future__ import annotations

from wsimil.mil import registry
from wsimil.mil.base import MILModel
from wsimil.mil.ensemble import Ensemble

MOST_CORRELATED = 0.2
"""A map whose mean rank correlation with those of random weights is as high as this does not depend on the weights enough."""

_APART = 1_000_003
"""Training draws its first weights from small seeds too; these must be others."""


def reinitialized(model: MILModel, method: str, *, seed: int) -> MILModel:
    """A model of the same method and hyperparameters whose weights training never touched; standardization stays as it was."""
    if isinstance(model, Ensemble):
        members = model.each()
        names = model.methods
        pairs = enumerate(zip(members, names, strict=True))
        fresh = [reinitialized(one, name, seed=seed + _APART * (number + 1)) for number, (one, name) in pairs]
        return Ensemble(fresh, names)
    drawn = registry.build(method, model.config, in_dim=model.in_dim, num_classes=model.num_classes, seed=_APART + seed)
    learned = {name: value for name, value in model.state_dict().items() if "standardize" in name.split(".")}
    drawn.load_state_dict({**drawn.state_dict(), **learned})
    like = next(model.parameters())
    return drawn.to(device=like.device, dtype=like.dtype)
