"""Official state_dicts: read whole or refused by name."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from wsimil.errors import ModelError
from wsimil.mil.checkpoints.base import build, describe, sources
from wsimil.testing.method_laws import make_bags

pytestmark = pytest.mark.shared
FILES = [
    ("acmil", "acmil/mha_train_t5k10d6_N2", "acmil"),
    ("aem", "aem/mha_l0.1_N2", "multihead"),
    ("attention_deep_mil", "abmil/ilse_gated_N2", "abmil"),
    ("clam", "clam/mb_drop0.25_N37", "clam"),
    ("clam", "clam/sb_nogate_drop0.25_N37", "clam"),
    ("dsmil", "dsmil/nl_passv_C3_N37", "dsmil"),
    ("dtfd", "dtfd/afs_g4_N7", "dtfd"),
    ("mhim", "abmil/mhim2_gated_N2", "abmil"),
    ("mhim", "mhim_v1/step_attn_c16_N37", "mhim"),
    ("mhim", "mhim_v1/step_dsmil_c16_N37", "mhim"),
    ("mhim", "mhim_v2/step_selfattn_k5r0.8_N37", "mhim"),
    ("mil_lab", "abmil/millab_abmil_N2", "abmil"),
    ("rrt", "rrt/epeg13_k3_mlp_h1_short_N37", "rrt"),
    ("transmil", "transmil/transmil_N2", "transmil"),
]
CASES = pytest.mark.parametrize(("source", "file", "method"), FILES, ids=lambda part: part)


@pytest.fixture
def state_of(shared_dir):
    def load(name):
        with np.load(shared_dir / "golden" / f"{name}.npz") as file:
            return {k.removeprefix("state."): torch.from_numpy(file[k]) for k in file.files if k.startswith("state.")}

    return load


@CASES
def test_a_checkpoint_is_read_whole(state_of, source, file, method):
    state = state_of(file)
    official = describe(source, state)
    assert official.method == method
    ours = build(official, state).state_dict()
    assert sorted([*official.names, *official.aliases]) == sorted(state)
    for theirs, name in official.names.items():
        assert torch.equal(ours[name].reshape(-1), state[theirs].reshape(-1))
    assert len(official.names) == sum("standardize." not in name for name in ours)  # which is ours alone


@CASES
def test_keys_too_many_and_too_few_are_named(state_of, source, file, method):
    state = state_of(file)
    prefix = "student." if "student.predictor.weight" in state else ""
    with pytest.raises(ModelError, match=r"unexpected.*surprise\.weight"):
        build(describe(source, more := {**state, f"{prefix}surprise.weight": torch.zeros(1)}), more)
    for name in [name for name in state if name not in describe(source, state).aliases]:
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
    assert {source for source, _, _ in FILES} <= set(sources())
    with pytest.raises(ModelError, match="unknown source 'x'; known are acmil"):
        describe("x", {})


def test_a_student_alone_is_its_encoder_and_answers_what_the_pair_answers(state_of):
    pair = state_of("mhim_v1/step_selfattn_c16_N37")
    student = {name.removeprefix("student."): value for name, value in pair.items() if name.startswith("student.")}
    alone = describe("mhim", student)
    assert alone.method == "transmil"
    bags = make_bags((9, 20), dim=64)
    both = build(describe("mhim", pair), pair)(bags).logits
    assert torch.equal(build(alone, student)(bags).logits, both)


def test_a_student_with_a_recycle_network_is_mhim_with_itself_as_teacher(state_of):
    pair = state_of("mhim_v2/step_attn_k5r0.8_N37")
    student = {name.removeprefix("student."): value for name, value in pair.items() if name.startswith("student.")}
    model = build(describe("mhim", student), student)
    state = model.state_dict()
    for name, value in state.items():
        if name.startswith("teacher."):
            assert torch.equal(value, state[name.replace("teacher.", "student.", 1)])
