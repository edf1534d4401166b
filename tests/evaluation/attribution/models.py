"""Every method of the registry in the shapes that its scores may differ in, small."""

from __future__ import annotations

import torch

from wsimil.mil import registry
from wsimil.mil.base import MILModel
from wsimil.mil.ensemble import Ensemble
from wsimil.testing.method_laws import CLASSES, DIM

SMALL: dict[str, object] = {"hidden_dim": 24}
CASES: dict[str, tuple[str, dict[str, object]]] = {
    "abmil": ("abmil", SMALL),
    "abmil of features": ("abmil", {"hidden_dim": None, "gated": False}),
    "acmil gated": ("acmil", SMALL),
    "acmil multihead": ("acmil", {"attention": "multihead", "branches": 3, "heads": 4, **SMALL}),
    "clam single": ("clam", SMALL),
    "clam multi": ("clam", {"branches": "multi", **SMALL}),
    "dsmil": ("dsmil", {}),
    "dsmil values": ("dsmil", {"value_layer": True, **SMALL}),
    "dtfd afs": ("dtfd", SMALL),
    "dtfd maxs": ("dtfd", {"distill": "maxs", "distilled": 8, **SMALL}),
    "dtfd maxmins": ("dtfd", {"distill": "maxmins", **SMALL}),
    "mhim abmil": ("mhim", {"base": {"name": "abmil", **SMALL}}),
    "mhim transmil": ("mhim", {"base": {"name": "transmil", "heads": 4, **SMALL}}),
    "mhim recycled": (
        "mhim",
        {
            "base": {"name": "clam", **SMALL},
            "score": "class",
            "recycle": {"tokens": 2, "heads": 2, "head_dim": 8, "at_inference": True},
        },
    ),
    "multihead": ("multihead", {"heads": 4, **SMALL}),
    "mean of features": ("pooling", {"level": "feature", **SMALL}),
    "mean of logits": ("pooling", SMALL),
    "max of features": ("pooling", {"pool": "max", "level": "feature", **SMALL}),
    "max of logits": ("pooling", {"pool": "max", **SMALL}),
    "rrt": ("rrt", {"heads": 4, "cross_heads": 4, "region_side": 2, **SMALL}),
    "rrt shortcut": ("rrt", {"heads": 4, "cross_heads": 4, "layers": 2, "shortcut": True, "phi_mlp": True, **SMALL}),
    "transmil": ("transmil", {"heads": 4, **SMALL}),
    "transmil ppeg": ("transmil", {"heads": 4, "filling": "ppeg", "shifted_output": True, **SMALL}),
}
ENSEMBLE = ("abmil", "multihead", "dsmil")
ALL = (*CASES, "ensemble")
MIXED = ("mhim transmil", "rrt", "rrt shortcut", "transmil", "transmil ppeg")
PICKING = ("dsmil", "dsmil values", "dtfd maxs", "dtfd maxmins")
"""Whose answers jump where another instance is picked."""


def build(case: str, *, outputs: int = CLASSES, wide: bool = True) -> MILModel:
    """A model with standardization that is not the identity and weights of some size; in float64 where `wide`."""
    if case == "ensemble":
        model: MILModel = Ensemble([build(name, outputs=outputs, wide=wide) for name in ENSEMBLE], ENSEMBLE)
        return model
    name, config = CASES[case]
    model = registry.build(name, config, in_dim=DIM, num_classes=outputs, seed=len(case))  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(1)
    model.standardize.fit([0.5 + 2 * torch.randn(200, DIM, generator=generator)])
    return model.double() if wide else model
