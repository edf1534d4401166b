"""Official state_dicts: read whole or refused by name."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from wsimil.errors import ModelError
from wsimil.mil.checkpoints.base import build, describe, sources

pytestmark = pytest.mark.shared
FILES = {
    "rrt": ("rrt/epeg13_k3_mlp_h1_short_N37", "rrt"),
    "dtfd": ("dtfd/afs_g4_N7", "dtfd"),
    "clam": ("clam/mb_drop0.25_N37", "clam"),
    "aem": ("aem/mha_l0.1_N2", "multihead"),
    "dsmil": ("dsmil/nl_passv_C3_N37", "dsmil"),
    "attention_deep_mil": ("abmil/ilse_gated_N2", "abmil"),
    "acmil": ("acmil/mha_train_t5k10d6_N2", "acmil"),
    "transmil": ("transmil/transmil_N2", "transmil"),
    "mhim": ("abmil/mhim2_gated_N2", "abmil"),
    "mil_lab": ("abmil/millab_abmil_N2", "abmil"),
}


@pytest.fixture
def state_of(shared_dir):
    def load(name):
        with np.load(shared_dir / "golden" / f"{name}.npz") as file:
            return {k.removeprefix("state."): torch.from_numpy(file[k]) for k in file.files if k.startswith("state.")}

    return load


@pytest.mark.parametrize("source", sorted(FILES))
def test_a_checkpoint_is_read_whole(state_of, source):
    file, method = FILES[source]
    state = state_of(file)
    official = describe(source, state)
    assert official.method == method
    ours = build(official, state).state_dict()
    assert sorted(official.names) == sorted(state)
    for theirs, name in official.names.items():
        assert torch.equal(ours[name].reshape(-1), state[theirs].reshape(-1))
    assert len(official.names) == len(ours) - 2  # the standardization is ours alone


@pytest.mark.parametrize("source", sorted(FILES))
def test_keys_too_many_and_too_few_are_named(state_of, source):
    state = state_of(FILES[source][0])
    with pytest.raises(ModelError, match=r"unexpected keys \['surprise.weight'\]"):
        describe(source, {**state, "surprise.weight": torch.zeros(1)})
    for name in state:
        less = {key: value for key, value in state.items() if key != name}
        with pytest.raises(ModelError) as caught:
            build(describe(source, less), less)
        assert name.rpartition(".")[0].split(".")[0] in str(caught.value) or "missing" in str(caught.value)


def test_a_tensor_of_another_shape_is_refused(state_of):
    state = state_of("abmil/ilse_gated_N2")
    state["attention_w.weight"] = torch.zeros(1, 5)
    with pytest.raises(ModelError, match=r"attention.score.weight: \[1, 5\] in the checkpoint, wanted"):
        build(describe("attention_deep_mil", state), state)


def test_an_unknown_source_is_refused_with_those_that_are_known():
    assert set(FILES) <= set(sources())
    with pytest.raises(ModelError, match="unknown source 'x'; known are acmil"):
        describe("x", {})
