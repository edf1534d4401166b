"""Every law on every method of the registry, at its defaults and in the shapes that other papers give it."""

from __future__ import annotations

import pytest

from wsimil.mil import registry
from wsimil.testing.method_laws import LAWS, a_bag_of_100k_fits_in_memory

VARIANTS = {
    "abmil": [
        {"gated": False, "attention_dim": 31, "hidden_dim": 63},
        {"hidden_dim": None, "gated": False, "embed_dropout": 0.0},
        {"embed_bias": False, "hidden_dim": 33, "activation": "gelu", "attention_dropout": 0.0},
        {
            "gated": False,
            "score_activation": "relu",
            "attention_bias": False,
            "init": "xavier_normal",
            "hidden_dim": 40,
        },
        {"score_activation": "gelu", "hidden_dim": 17, "init": "kaiming_uniform"},
    ],
    "acmil": [
        {"attention": "multihead", "branches": 3, "hidden_dim": 40, "heads": 5},
        {"attention": "multihead", "branches": 2, "hidden_dim": 33, "heads": 1, "top_k": 0},
        {"branches": 1, "hidden_dim": 33, "top_k": 0},
        {"attention": "multihead", "branches": 1, "hidden_dim": 32, "heads": 4, "top_k": 3, "drop": 1.0},
    ],
    "clam": [
        {"hidden_dim": 33, "attention_dim": 17, "subtyping": True, "k_sample": 3},
        {"branches": "multi", "hidden_dim": 40, "gated": False, "instance_loss": "svm"},
        {"branches": "multi", "hidden_dim": 24, "subtyping": True, "embed_dropout": 0.0},
    ],
    "dsmil": [
        {"nonlinear": False, "query_dim": 17},
        {"hidden_dim": 33, "value_layer": True, "value_dropout": 0.1, "embed_dropout": 0.25},
    ],
    "dtfd": [
        {"distill": "maxs", "distilled": 12, "hidden_dim": 33, "end_to_end": True},
        {"distill": "maxmins", "pseudo_bags": 3, "hidden_dim": 40, "attention_dim": 17},
        {"pseudo_bags": 2, "hidden_dim": 24, "embed_dropout": 0.25},
    ],
    "mhim": [
        {"base": {"name": "transmil", "hidden_dim": 32, "heads": 4, "filling": "ppeg", "init": "xavier_normal"}},
        {
            "base": {"name": "abmil", "hidden_dim": 40, "activation": "gelu", "attention_dropout": 0.25},
            "score": "class",
            "recycle": {"tokens": 3, "heads": 2, "head_dim": 8},
            "mask": {"high": 0.1},
        },
        {
            "base": {"name": "transmil", "hidden_dim": 32, "heads": 4},
            "score": "class",
            "recycle": {"tokens": 2, "heads": 2, "head_dim": 8, "at_inference": True},
            "teacher_dropout": False,
        },
        {"base": {"name": "dsmil", "hidden_dim": 24, "value_layer": True}, "score": "instance", "mask": {"low": 0.5}},
        {"base": {"name": "acmil", "attention": "multihead", "hidden_dim": 24, "heads": 3}, "mask": {"high": 0.3}},
        {"base": {"name": "clam", "branches": "multi", "hidden_dim": 24}, "mask": {"random": 0.3, "fusion": "mean"}},
        {
            "base": {"name": "rrt", "hidden_dim": 24, "region_side": 2},
            "score": "class",
            "mask": {"invert": True, "low": 0.5},
        },
        {"base": {"name": "dtfd", "hidden_dim": 24}, "mask": {"high": 0.2, "high_share": 0.5, "decay": True}},
    ],
    "multihead": [{"hidden_dim": 30, "heads": 3, "embed_dropout": 0.25}],
    "pooling": [
        {"pool": pool, "level": level, "hidden_dim": hidden_dim}
        for pool in ("mean", "max")
        for level in ("feature", "logit")
        for hidden_dim in (63, None)
    ],
    "rrt": [
        {"hidden_dim": 48, "heads": 3, "cross_heads": 2, "region_side": 2, "epeg_kernel": 5, "phi_mlp": True},
        {"hidden_dim": 24, "layers": 2, "heads": 2, "region_side": 3, "epeg_kernel": None, "shortcut": True},
        {"hidden_dim": 32, "layers": 0, "region_side": 1, "representatives": 1, "activation": "gelu"},
    ],
    "transmil": [
        {"hidden_dim": 48, "heads": 3, "landmarks": 7, "kernel": 5, "attention_layer": 2, "embed_dropout": 0.25},
        {"hidden_dim": 32, "heads": 4, "iterations": 2, "shifted_output": True},
    ],
}
CASES = [
    pytest.param(name, config, law, id=f"{name}-{config or 'defaults'}-{law.__name__}")
    for name in registry.names()
    for config in [{}, *VARIANTS.get(name, [])]
    for law in LAWS
    # What a hundred thousand instances take does not hang on the variant.
    if not (config and law is a_bag_of_100k_fits_in_memory)
]


@pytest.mark.parametrize(("name", "config", "law"), CASES)
def test_methods_hold_the_law(name, config, law):
    law(lambda in_dim, num_classes: registry.build(name, config, in_dim=in_dim, num_classes=num_classes))
