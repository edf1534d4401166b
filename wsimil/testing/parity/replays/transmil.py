"""TransMIL: a step without dropout, its layers one by one, the rows of the class token, and a step with the recorded masks."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from wsimil.mil.checkpoints.base import build, describe
from wsimil.mil.methods.transmil import TransMIL
from wsimil.testing.parity.recording import Recording
from wsimil.testing.parity.report import Report
from wsimil.testing.parity.step import Comparison, convolve_as_recorded, precisions, take_step


def replay(recording: Recording, report: Report) -> None:
    """Compare all that the file expects."""
    facts = recording.config
    sizes = {ours: facts[theirs] for ours, theirs in _SIZES.items() if theirs in facts}
    for precision in precisions(recording):
        state = recording.state(dtype=precision.dtype)
        official = describe("transmil", state)
        model = build(official, state, config={**sizes, "out_dropout": 0.0})
        if precision.dtype == torch.float32:
            convolve_as_recorded(model)
        bags = recording.bag(dtype=precision.dtype)
        seen = _watch(model)
        terms = take_step(model, bags, replace(recording.step(), draws={}), report=report)
        comparison = Comparison(recording=recording, report=report, precision=precision)
        comparison.check("logits", terms.output.logits, "out.logits")
        comparison.check("class token before the norm", seen["tokens after layer 2"][0], "out.cls_final")
        comparison.check("loss", terms.total, "out.loss")
        comparison.check("embedded instances", model.embed_instances(bags, None), "mid.fc1")
        for quantity, value in seen.items():
            comparison.check(quantity, value, _KEYS[quantity])
        comparison.features_gradient(bags)
        comparison.gradients(model, official)
        if precision.prefix:
            continue
        if "legacy009.out.logits" in recording:
            shifted = build(official, state, config={**sizes, "out_dropout": 0.0, "shifted_output": True})
            comparison.check("logits of 0.0.9", shifted(bags).logits, "legacy009.out.logits")
        if "train.out.logits" in recording:
            model = build(official, state, config=sizes)
            convolve_as_recorded(model)
            bags = recording.bag()
            terms = take_step(model, bags, recording.step(), report=report)
            comparison.check("logits of a step", terms.output.logits, "train.out.logits")
            comparison.check("loss of a step", terms.total, "train.out.loss")
            comparison.features_gradient(bags, "train.grad.x")
            comparison.gradients(model, official, prefix="train.")


_SIZES = {"landmarks": "num_landmarks", "iterations": "pinv_iterations", "heads": "heads"}
_KEYS = {
    "tokens after layer 1": "mid.l1",
    "tokens after ppeg": "mid.ppeg",
    "tokens after layer 2": "mid.l2",
    "class token of layer 1": "out.cls_attn_layer1",
    "class token of layer 2": "out.cls_attn_layer2",
}


def _watch(model: torch.nn.Module) -> dict[str, Tensor]:
    """What each layer gives for all tokens, and the class token's row in it."""
    if not isinstance(model, TransMIL):
        raise TypeError(f"wanted TransMIL, got {type(model).__name__}")
    seen: dict[str, Tensor] = {}

    def watch(number: int) -> None:
        layer = model.layer1 if number == 1 else model.layer2
        learn = layer.attention.learn

        def watched(tokens: Tensor, norm: torch.nn.LayerNorm, keep: Tensor | None, *, count: int) -> Tensor:
            with torch.no_grad():
                seen[f"tokens after layer {number}"] = learn(tokens, norm, keep, count=len(tokens))
            seen[f"class token of layer {number}"] = layer.streamed(tokens.detach()).row(0)
            if number == 2:
                seen["tokens after ppeg"] = tokens.detach()
            return learn(tokens, norm, keep, count=count)

        layer.attention.learn = watched  # type: ignore[method-assign]

    watch(1)
    watch(2)
    return seen
