"""RRT-MIL: a step without dropout with what its encoder gives, and a step with the recorded masks."""

from __future__ import annotations

from dataclasses import replace

import torch

from wsimil.mil.checkpoints.base import build, describe
from wsimil.testing.parity.recording import Recording
from wsimil.testing.parity.report import Report
from wsimil.testing.parity.step import Comparison, precisions, take_step, without_dropout


def replay(recording: Recording, report: Report) -> None:
    """Compare all that the file expects."""
    facts = recording.config
    kwargs = facts["kwargs"]
    config: dict[str, str | int | float | bool] = {
        "heads": facts["n_heads"],
        "cross_heads": kwargs.get("crmsa_heads", 8),
        "region_side": facts["region_num"],
        "shortcut": kwargs.get("all_shortcut", False),
        "score_activation": facts["da_act"],
    }
    for precision in precisions(recording):
        state = recording.state(dtype=precision.dtype)
        official = describe("rrt", state)
        comparison = Comparison(recording=recording, report=report, precision=precision)
        model = build(official, state, config={**config, **without_dropout(official)})
        bags = recording.bag(dtype=precision.dtype)
        seen: list[torch.Tensor] = []
        handle = model.get_submodule("norm").register_forward_hook(lambda _, __, out, seen=seen: seen.append(out))
        terms = take_step(model, bags, replace(recording.step(), draws={}), report=report)
        handle.remove()
        comparison.answers(terms.output)
        comparison.check("tokens of the encoder", seen[0], "mid.encoder")
        comparison.check("loss", terms.total, "out.loss")
        comparison.features_gradient(bags)
        comparison.gradients(model, official)
        if comparison.has("train.out.logits"):
            model = build(official, state, config=config)
            bags = recording.bag(dtype=precision.dtype)
            terms = take_step(model, bags, recording.step(), report=report)
            comparison.check("logits of a step", terms.output.logits, "train.out.logits")
            comparison.check("loss of a step", terms.total, "train.out.loss")
            comparison.features_gradient(bags, "train.grad.x")
            comparison.gradients(model, official, prefix="train.")
