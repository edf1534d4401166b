"""Recorded numbers of the official codes of ABMIL and of pooling, replayed."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from wsimil.mil import registry
from wsimil.mil.batch import StepContext, pack

pytestmark = pytest.mark.shared

# Agreement in float32: 1e-5 of the norm, below 1e-7 nothing is compared (a gradient that is zero by theory holds noise).
RELATIVE, ABSOLUTE = 1e-5, 1e-7

NO_DROPOUT = {"embed_dropout": 0.0, "attention_dropout": 0.0}
ACMIL = {
    "dimreduction.fc1": "embed.linear",
    "attention.attention_V.0": "attention.value",
    "attention.attention_U.0": "attention.gate",
    "attention.attention_weights": "attention.score",
    "classifier.fc": "classifier",
}
ILSE_PLAIN = {"attention.0": "attention.value", "attention.2": "attention.score", "classifier.0": "classifier"}
ILSE_GATED = {
    "attention_V.0": "attention.value",
    "attention_U.0": "attention.gate",
    "attention_w": "attention.score",
    "classifier.0": "classifier",
}
MHIM_PLAIN = {
    "feature.0": "embed.linear",
    "attention.0": "attention.value",
    "attention.2": "attention.score",
    "classifier": "classifier",
}
MHIM_GATED = {
    "feature.0": "embed.linear",
    "attention_a.0": "attention.value",
    "attention_b.0": "attention.gate",
    "attention_c": "attention.score",
    "classifier.0": "classifier",
}
MILLAB = {
    "patch_embed.0": "embed.linear",
    "global_attn.attention_a.0": "attention.value",
    "global_attn.attention_b.0": "attention.gate",
    "global_attn.attention_c": "attention.score",
    "classifier": "classifier",
}
HEAD = {"head.0": "embed.linear", "head.3": "classifier"}

CASES = [
    *[
        (f"abmil/acmil_abmil_gated_{n}", "abmil", {"embed_bias": False, **NO_DROPOUT}, ACMIL)
        for n in ("N2", "N37", "N1000", "official_N200")
    ],
    *[
        (f"abmil/ilse_plain_{n}", "abmil", {"hidden_dim": None, "gated": False, **NO_DROPOUT}, ILSE_PLAIN)
        for n in ("N2", "N37")
    ],
    *[(f"abmil/ilse_gated_{n}", "abmil", {"hidden_dim": None, **NO_DROPOUT}, ILSE_GATED) for n in ("N2", "N37")],
    *[
        (
            f"abmil/mhim2_plain_gelu_{n}",
            "abmil",
            {"gated": False, "activation": "gelu", "attention_dropout": 0.0},
            MHIM_PLAIN,
        )
        for n in ("N2", "N37")
    ],
    *[(f"abmil/mhim2_gated_{n}", "abmil", {"attention_dropout": 0.25}, MHIM_GATED) for n in ("N2", "N37")],
    *[(f"abmil/millab_abmil_{n}", "abmil", {"embed_dropout": 0.0}, MILLAB) for n in ("N2", "N37")],
    *[(f"pool/{pool}_{n}", "pooling", {"pool": pool}, HEAD) for pool in ("mean", "max") for n in ("N2", "N37")],
]


class RecordedStep(StepContext):
    """A step whose masks are those of a recording, in their order."""

    __slots__ = ("masks",)

    def keep_mask(self, shape: Sequence[int], *, drop: float, device: torch.device) -> torch.Tensor:
        return torch.from_numpy(self.masks.pop(0)).bool().view(*shape)


@pytest.fixture(scope="module")
def golden(shared_dir):
    def load(name):
        with np.load(shared_dir / "golden" / f"{name}.npz") as file:
            return {key: file[key] for key in file.files}

    return load


def build(recorded, method, config, names, dtype=torch.float32):
    """Our model with the official weights, and a batch of the recorded bag."""
    state = {}
    for key, value in recorded.items():
        if key.startswith("state."):
            layer, _, leaf = key.removeprefix("state.").rpartition(".")
            state[f"{names[layer]}.{leaf}"] = torch.from_numpy(value).to(dtype)
    x = recorded["in.h" if "in.h" in recorded else "in.x"]
    widths = {}
    if "embed.linear.weight" in state:
        widths["hidden_dim"] = len(state["embed.linear.weight"])
    if "attention.value.weight" in state:
        widths["attention_dim"] = len(state["attention.value.weight"])
    classes = len(state["classifier.weight"])
    model = registry.build(method, {**config, **widths}, in_dim=x.shape[1], num_classes=classes).to(dtype)
    missing = model.load_state_dict(state, strict=False)
    assert missing.missing_keys == ["standardize.mean", "standardize.scale"]
    assert missing.unexpected_keys == []
    features = torch.from_numpy(x.astype(np.float32)).to(dtype).requires_grad_()
    bags = pack(
        [features],
        xy0=[np.zeros((len(x), 2), np.int64)],
        slide_ids=["recorded"],
        targets=recorded["in.label"].astype(np.int64).tolist(),
    )
    return model, bags


def bernoulli(logits, targets):
    """Ilse's objective: one logit, its probability kept off 0 and 1."""
    p = logits.sigmoid().clamp(1e-5, 1 - 1e-5)
    return F.binary_cross_entropy(p[:, 0], targets.to(p.dtype))


def compare(ours, theirs, what, relative=RELATIVE):
    ours, theirs = ours.detach().double(), torch.from_numpy(np.asarray(theirs)).double().view(ours.shape)
    gap = (ours - theirs).norm()
    assert gap <= relative * theirs.norm() + ABSOLUTE, f"{what}: {gap / theirs.norm():.2e}"


def replay(recorded, method, config, names, *, dtype, prefix, relative):
    model, bags = build(recorded, method, {**config, **NO_DROPOUT} if method == "abmil" else {**config, "embed_dropout": 0.0},
                        names, dtype)  # fmt: skip
    kind = {"criterion": bernoulli} if len(model.classifier.weight) == 1 else {}
    terms = model.losses(bags, StepContext(generator=torch.Generator(), progress=0.0, **kind))
    terms.total.backward()
    output = model(bags)
    compare(output.logits, recorded[f"{prefix}out.logit" + ("" if kind else "s")], "logits", relative)
    compare(terms.output.logits, output.logits.detach().numpy(), "logits of the step", 0.0)
    compare(terms.total, recorded[f"{prefix}out.loss"], "loss", relative)
    if f"{prefix}out.attn_raw" in recorded:
        compare(output.attention_logits[:, 0], recorded[f"{prefix}out.attn_raw"][0], "attention", relative)
    if f"{prefix}out.slide_feats" in recorded:
        compare(output.embedding, recorded[f"{prefix}out.slide_feats"], "embedding", relative)
    x = "h" if "in.h" in recorded else "x"
    compare(bags.features.grad, recorded[f"{prefix}grad.{x}"], "gradient of x", relative)
    compared = 0
    for key, value in recorded.items():
        if key.startswith(f"{prefix}grad.state."):
            layer, _, leaf = key.removeprefix(f"{prefix}grad.state.").rpartition(".")
            gradient = model.get_parameter(f"{names[layer]}.{leaf}").grad
            if f"{names[layer]}.{leaf}" in model.without_gradient:
                # Zero by theory: what both hold is the noise of a sum of terms of size 1.
                value, gradient = value * (abs(value) > 1e-6), gradient * (gradient.abs() > 1e-6)
            compare(gradient, value, f"gradient of {layer}.{leaf}", relative)
            compared += 1
        if key.startswith(f"{prefix}gradnorm.state."):
            layer, _, leaf = key.removeprefix(f"{prefix}gradnorm.state.").rpartition(".")
            norm = model.get_parameter(f"{names[layer]}.{leaf}").grad.double().norm()
            compare(norm, value, f"norm of the gradient of {layer}.{leaf}", relative)
            compared += 1
    assert compared == len(list(model.parameters()))


@pytest.mark.parametrize(
    ("name", "method", "config", "names"), CASES, ids=lambda value: value if isinstance(value, str) else ""
)
def test_a_step_without_dropout_gives_the_recorded_numbers(golden, name, method, config, names):
    recorded = golden(name)
    replay(recorded, method, config, names, dtype=torch.float32, prefix="", relative=RELATIVE)
    if "f64.out.loss" in recorded:
        replay(recorded, method, config, names, dtype=torch.float64, prefix="f64.", relative=1e-12)


@pytest.mark.parametrize(
    "name",
    ["abmil/mhim2_plain_gelu_N37", "abmil/mhim2_gated_N2", "abmil/mhim2_gated_N37", "pool/max_N37", "pool/mean_N37"],
)
def test_a_step_with_the_recorded_masks_gives_the_recorded_numbers(golden, name):
    recorded = golden(name)
    model, bags = next(build(recorded, *case[1:]) for case in CASES if case[0] == name)
    step = RecordedStep(generator=torch.Generator(), progress=0.0)
    masks = [recorded[f"rng.{draw}"] for draw in json.loads(str(recorded["rng.order"]))]
    object.__setattr__(step, "masks", masks)
    terms = model.losses(bags, step)
    terms.total.backward()
    assert masks == []
    compare(terms.output.logits, recorded["train.out.logits"], "logits")
    compare(terms.total, recorded["train.out.loss"], "loss")
    compare(bags.features.grad, recorded["train.grad.x"], "gradient of x")
