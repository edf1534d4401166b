"""MHIM-MIL (https://github.com/DearCaat/MHIM-MIL), branches v1 and master: its models, and its baselines.

A file of student and teacher, {"model": ..., "teacher": ...}, is read as MHIM; the student alone as its encoder, which answers
the same, or as MHIM where it has a recycle network. Activations are assumed as their configs have them: gelu in version 2, relu
in version 1.
"""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import JsonValue
from torch import Tensor

from wsimil.mil.checkpoints import transmil
from wsimil.mil.checkpoints.base import OfficialModel, first_layout, names_of

_NAME = "MHIM-MIL"
_PLAIN = {
    "feature.0": "embed.linear",
    "attention.0": "attention.value",
    "attention.2": "attention.score",
    "classifier": "classifier",
}
_GATED = {
    "feature.0": "embed.linear",
    "attention_a.0": "attention.value",
    "attention_b.0": "attention.gate",
    "attention_c": "attention.score",
    "classifier.0": "classifier",
}
_POOLING = {"head.0": "embed.linear", "head.3": "classifier"}
_ENCODER = "online_encoder."
_ATTENTION = {
    f"{_ENCODER}attention.attention.0": "attention.value",
    f"{_ENCODER}attention.attention.2": "attention.score",
}
_DSMIL = {
    f"{_ENCODER}i_classifier.0": "instance",
    f"{_ENCODER}b_classifier.q.0": "query.0",
    f"{_ENCODER}b_classifier.q.2": "query.2",
    f"{_ENCODER}b_classifier.v.1": "value",
    f"{_ENCODER}b_classifier.fcc": "bag",
}
_RECYCLE = {
    "merge.global_q_mm": "recycle.queries",
    "merge.norm": "recycle.norm",
    "merge.attn.to_q": "recycle.to_q",
    "merge.attn.to_kv": "recycle.to_kv",
    "merge.attn.to_out.0": "recycle.to_out",
}
_REPEATED = ("merge.global_q",)
_LAYOUTS = [
    ("pooling", "head.0.weight"),
    ("plain", "attention.0.weight"),
    ("gated", "attention_a.0.weight"),
    ("encoder", "predictor.weight"),
]


def describe(state: Mapping[str, Tensor]) -> OfficialModel:
    """Which of all, by its keys. Raises ModelError."""
    if any(key.startswith("teacher.") for key in state):
        return _pair(state)
    kind = first_layout(state, _LAYOUTS, source=_NAME)
    if kind == "pooling":
        return _pooling(state)
    if kind != "encoder":
        return _baseline(state, gated=kind == "gated")
    if "merge.global_q_mm" in state:
        alone = _pair({f"student.{key}": tensor for key, tensor in state.items()})
        names = {theirs.removeprefix("student."): ours for theirs, ours in alone.names.items()}
        return OfficialModel(
            method=alone.method,
            config=alone.config,
            in_dim=alone.in_dim,
            num_classes=alone.num_classes,
            names=names,
            aliases=frozenset(name.removeprefix("student.") for name in alone.aliases),
            untold=alone.untold,
            repeats={ours.replace("student.", "teacher.", 1): ours for ours in names.values()},
        )
    return _encoder(state)


def _pooling(state: Mapping[str, Tensor]) -> OfficialModel:
    embed, head = state["head.0.weight"], state["head.3.weight"]
    return OfficialModel(
        method="pooling",
        config={"hidden_dim": len(embed)},
        in_dim=embed.shape[1],
        num_classes=len(head),
        names=names_of(state, _POOLING, source=_NAME),
        untold=("pool", "activation"),
    )


def _baseline(state: Mapping[str, Tensor], *, gated: bool) -> OfficialModel:
    names = names_of(state, _GATED if gated else _PLAIN, source=_NAME)
    value = state["attention_a.0.weight" if gated else "attention.0.weight"]
    embed = state["feature.0.weight"]
    return OfficialModel(
        method="abmil",
        config={
            "hidden_dim": len(embed),
            "attention_dim": len(value),
            "gated": gated,
            "attention_bias": f"attention{'_a.0' if gated else '.0'}.bias" in state,
            "attention_dropout": 0.25 if gated else 0.0,
            "centered_classifier": False,
        },
        in_dim=embed.shape[1],
        num_classes=len(state["classifier.0.weight" if gated else "classifier.weight"]),
        names=names,
        untold=("activation", "score_activation"),
    )


def _pair(state: Mapping[str, Tensor]) -> OfficialModel:
    """Student and teacher, or in a checkpoint of the student alone that one, by keys "student...." and "teacher...."."""
    names: dict[str, str] = {}
    aliases: set[str] = set()
    recycle: dict[str, JsonValue] | None = None
    encoders = {}
    for who in ("student", "teacher"):
        own = {key.removeprefix(f"{who}."): tensor for key, tensor in state.items() if key.startswith(f"{who}.")}
        if not own:
            continue
        merge = {key: tensor for key, tensor in own.items() if key.startswith("merge.") and key not in _REPEATED}
        aliases |= {f"{who}.{key}" for key in _REPEATED if key in own}
        encoder = encoders[who] = _encoder({key: t for key, t in own.items() if not key.startswith("merge.")})
        aliases |= {f"{who}.{key}" for key in encoder.aliases}
        names |= {f"{who}.{theirs}": f"{who}.method.{ours}" for theirs, ours in encoder.names.items()}
        if merge:
            names |= {
                f"{who}.{theirs}": f"{who}.{ours}" for theirs, ours in names_of(merge, _RECYCLE, source=_NAME).items()
            }
            queries = merge["merge.global_q_mm"]
            # Of its eight heads only the product with their width is written.
            recycle = {"tokens": queries.shape[-2], "heads": 8, "head_dim": len(merge["merge.attn.to_q.weight"]) // 8}
    student = encoders["student"]
    score = "instance" if student.method == "dsmil" else "class" if recycle else "attention"
    return OfficialModel(
        method="mhim",
        config={"base": {"name": student.method, **student.config}, "recycle": recycle, "score": score},
        in_dim=student.in_dim,
        num_classes=student.num_classes,
        names=names,
        aliases=frozenset(aliases),
        untold=(
            *(f"base.{name}" for name in student.untold),
            *(("recycle.heads", "recycle.at_inference") if recycle else ()),
        ),
    )


def _encoder(state: Mapping[str, Tensor]) -> OfficialModel:
    """A student or a teacher without its recycle network."""
    feature = "feature.0" if "feature.0.weight" in state else "patch_to_emb.0"
    ends = {feature: "embed.linear", "predictor": "classifier"}
    embed = state[f"{feature}.weight"]
    config: dict[str, JsonValue] = {
        "hidden_dim": len(embed),
        "embed_dropout": 0.25,
        "activation": "gelu" if feature == "feature.0" else "relu",
    }
    untold: tuple[str, ...] = ("activation",)
    aliases: frozenset[str] = frozenset()
    if f"{_ENCODER}cls_token" in state:
        method = "transmil"
        inner = transmil.config_of(state, prefix=_ENCODER)
        names = names_of(state, ends | transmil.layers(prefix=_ENCODER, ppeg="pos_embedding"), source=_NAME)
        config |= {**inner, "filling": "ppeg", "init": "xavier_normal"}
        untold += ("landmarks", "iterations")
    elif f"{_ENCODER}i_classifier.0.weight" in state:
        method = "dsmil"
        # The predictor of this encoder is never asked.
        aliases = frozenset({"predictor.weight", "predictor.bias"})
        own = {key: tensor for key, tensor in state.items() if key not in aliases}
        names = names_of(own, {feature: "embed.linear"} | _DSMIL, source=_NAME)
        query = state[f"{_ENCODER}b_classifier.q.0.weight"]
        config |= {"query_dim": len(query), "nonlinear": True, "value_layer": True}
        config["joined_loss"] = feature == "feature.0"
    else:
        method = "abmil"
        names = names_of(state, ends | _ATTENTION, source=_NAME)
        config |= {
            "attention_dim": len(state[f"{_ENCODER}attention.attention.0.weight"]),
            "gated": False,
            "score_activation": "relu",
            "attention_bias": f"{_ENCODER}attention.attention.0.bias" in state,
            "init": "xavier_normal",
            "centered_classifier": False,
        }
        untold += ("score_activation",)
    return OfficialModel(
        method=method,
        config=config,
        in_dim=embed.shape[1],
        num_classes=len(state["predictor.weight" if method != "dsmil" else f"{_ENCODER}b_classifier.fcc.weight"]),
        names=names,
        aliases=aliases,
        untold=untold,
    )
