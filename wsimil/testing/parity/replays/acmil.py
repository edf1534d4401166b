"""ACMIL: its ABMIL, and ACMIL with gated or multi-head attention, in train and eval mode."""

from __future__ import annotations

from dataclasses import replace

import torch

from wsimil.mil.checkpoints.base import build, describe
from wsimil.testing.parity.recording import Recording
from wsimil.testing.parity.report import FLOAT32, Report
from wsimil.testing.parity.step import Comparison, precisions, take_step, without_dropout

_MASKED_SCORE = -1e9


def replay(recording: Recording, report: Report) -> None:
    """Compare all that the file expects."""
    facts = recording.config
    trains = facts["mode"] == "train"
    for precision in precisions(recording):
        state = recording.state(dtype=precision.dtype)
        official = describe("acmil", state)
        config: dict[str, float] = {}
        if official.method == "acmil":
            config = {"top_k": facts["n_masked_patch"], "drop": facts["mask_drop"]}
            if official.config["attention"] == "multihead":
                config["heads"] = facts["heads"]
            config |= {"out_dropout": 0.1 if facts["dropout"] == "record" else 0.0}
        if not trains and official.method == "acmil":
            config = without_dropout(official, config) | {"top_k": 0}
        model = build(official, state, config=config)
        bags = recording.bag(dtype=precision.dtype)
        step = recording.step() if trains else replace(recording.step(), draws={})
        only_slide = official.method == "acmil" and not trains
        terms = take_step(
            model, bags, step, report=report,
            total=(lambda found: found.terms["slide"]) if only_slide else (lambda found: found.total),
        )  # fmt: skip
        comparison = Comparison(recording=recording, report=report, precision=precision)
        output = terms.output
        comparison.check("logits", output.logits, "out.logits")
        if not trains:
            comparison.check("eval logits", model(bags).logits, "out.logits")
        if output.branch_logits is not None:
            comparison.check("branch logits", output.branch_logits[0], "out.sub_logits")
        if output.attention_logits is not None:
            scores = output.attention_logits.double()
            if output.masked is not None:
                scores = scores.masked_fill(output.masked, _MASKED_SCORE)
            scores = _as_recorded(scores, recording, precision.prefix)
            comparison.check("attention", scores, "out.attn_raw")
            comparison.check("attention", scores.softmax(dim=-1), "out.attn")
        if official.method == "acmil" and trains:
            nothing = torch.zeros(())  # what the official code says of a single branch
            comparison.check("loss.slide", terms.terms["slide"], "out.loss.slide")
            comparison.check("loss.branches", terms.terms.get("branches", nothing), "out.loss.sub")
            # The official sum over pairs of branches is kept in float32, also in the float64 pass.
            comparison.check("loss.diversity", terms.terms.get("diversity", nothing), "out.loss.diff", bound=FLOAT32)
            comparison.check("loss", terms.total, "out.loss", bound=FLOAT32)
        else:
            comparison.check("loss", terms.terms["slide"] if only_slide else terms.total, "out.loss")
        comparison.features_gradient(bags)
        comparison.gradients(model, official)


def _as_recorded(scores: torch.Tensor, recording: Recording, prefix: str) -> torch.Tensor:
    """[N, H] in the file's order of heads and branches."""
    shape = recording.array(f"{prefix}out.attn_raw").shape
    if len(shape) == 3 and shape[0] > 1:  # heads, branches, instances
        heads, branches, count = shape
        return scores.T.reshape(branches, heads, count).transpose(0, 1)
    return scores.T
