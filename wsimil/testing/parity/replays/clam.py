"""CLAM: without the instance branch as at inference, and a training step with it."""

from __future__ import annotations

from dataclasses import replace

from wsimil.mil.checkpoints.base import build, describe
from wsimil.testing.parity.recording import Recording
from wsimil.testing.parity.report import Report
from wsimil.testing.parity.step import Comparison, precisions, take_step, without_dropout


def replay(recording: Recording, report: Report) -> None:
    """Compare all that the file expects."""
    facts = recording.config
    config: dict[str, float | str] = {
        "k_sample": facts["k_sample"],
        "subtyping": facts["subtyping"],
        "bag_weight": facts["bag_weight"],
        "instance_loss": "svm" if "svm" in str(facts["inst_loss"]).lower() else "cross_entropy",
        "embed_dropout": facts["dropout"],
        "attention_dropout": 0.25 if facts["dropout"] else 0.0,
    }
    for precision in precisions(recording):
        state = recording.state(dtype=precision.dtype)
        official = describe("clam", state)
        comparison = Comparison(recording=recording, report=report, precision=precision)
        if comparison.has("eval.logits"):
            model = build(official, state, config={**config, **without_dropout(official)})
            bags = recording.bag(dtype=precision.dtype)
            step = replace(recording.step(), draws={})
            terms = take_step(model, bags, step, report=report, total=lambda found: found.terms["bag"])
            comparison.answers(terms.output, prefix="eval.", name=" at inference")
            comparison.check("loss.bag at inference", terms.terms["bag"], "eval.loss.bag")
            comparison.features_gradient(bags, "eval.grad.x")
        if comparison.has("out.logits"):
            model = build(official, state, config={**config, "compat": "official"})
            bags = recording.bag(dtype=precision.dtype)
            terms = take_step(model, bags, recording.step(), report=report)
            comparison.answers(terms.output)
            comparison.check("loss.bag", terms.terms["bag"], "out.loss.bag")
            comparison.check("loss.instance", terms.terms["instance"], "out.loss.inst")
            comparison.check("loss", terms.total, "out.loss")
            comparison.check("labels of instances", terms.details["instance_labels"], "out.inst_labels")
            comparison.check("answers for instances", terms.details["instance_logits"].argmax(dim=1), "out.inst_preds")
            comparison.features_gradient(bags)
            comparison.gradients(model, official)
