"""Methods are found by name, built from a seed, and refused with a hint."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from wsimil.config import FrozenConfig
from wsimil.errors import ConfigError
from wsimil.mil import registry
from wsimil.mil.methods.abmil import ABMIL, ABMILConfig


def test_every_method_file_is_listed_with_a_summary():
    assert {"abmil", "pooling"} <= set(registry.names())
    for name in registry.names():
        assert len(registry.summary(name)) > 10
        assert issubclass(registry.config_class(name), FrozenConfig)
        assert registry.method_class(name).__module__.endswith(f".{name}")


def test_listing_methods_loads_no_torch():
    code = "import sys; from wsimil.mil import registry as r; r.names(); r.summary('abmil'); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_one_seed_builds_one_model_and_leaves_the_global_generator_alone():
    state = torch.get_rng_state()
    first, second, other = (registry.build("abmil", {}, in_dim=7, num_classes=2, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name])
    assert not torch.equal(first.classifier.weight, other.classifier.weight)


def test_a_config_may_be_a_mapping_or_the_methods_own():
    model = registry.build("abmil", ABMILConfig(hidden_dim=9), in_dim=7, num_classes=2)
    assert isinstance(model, ABMIL)
    assert model.classifier.in_features == 9
    with pytest.raises(ConfigError, match="takes a PoolingConfig, got a ABMILConfig"):
        registry.build("pooling", ABMILConfig(), in_dim=7, num_classes=2)


@pytest.mark.parametrize(
    ("name", "config", "message"),
    [
        ("abmill", {}, "unknown method 'abmill'; did you mean 'abmil'"),
        ("zzz", {}, "known methods: abmil"),
        ("../base", {}, "unknown method"),
        ("__init__", {}, "unknown method"),
        ("abmil", {"hiden_dim": 3}, "train.yaml: hiden_dim: unknown key, got 3; did you mean 'hidden_dim'"),
        ("abmil", {"embed_dropout": 1.0}, "train.yaml: embed_dropout: input should be less than 1"),
    ],
)
def test_a_wrong_name_or_key_says_what_was_meant(name, config, message):
    with pytest.raises(ConfigError) as caught:
        registry.build(name, config, in_dim=7, num_classes=2, source="train.yaml")
    assert message in str(caught.value)
