"""AEM: attention entropy on three methods, on a subset of the bag, and on the largest weights alone."""

from __future__ import annotations

from dataclasses import replace

import torch

from wsimil.mil.batch import take
from wsimil.mil.checkpoints.base import build, describe
from wsimil.mil.regularizers.attention_entropy import attention_entropy
from wsimil.testing.parity.recording import Recording
from wsimil.testing.parity.report import FLOAT32, Report
from wsimil.testing.parity.step import Comparison, precisions


def replay(recording: Recording, report: Report) -> None:
    """Compare all that the file expects."""
    facts = recording.config
    for precision in precisions(recording):
        state = recording.state(dtype=precision.dtype)
        official = describe("aem", state)
        if official.method == "dsmil":  # whose scale is rounded to float32, also in the float64 pass
            precision = replace(precision, bound=FLOAT32)
        drops = official.method == "multihead" and facts["dropout"] == "record"
        config = {"out_dropout": 0.1 if drops else 0.0} if official.method == "multihead" else {}
        model = build(official, state, config=config)
        whole, step = recording.bag(dtype=precision.dtype), recording.step()
        bags = whole
        if facts["subsampling"] < 1:
            count = len(whole.features)
            kept = step.permutation(count, device=torch.device("cpu"))[: int(facts["subsampling"] * count)]
            bags = take(whole, kept)
        terms = model.losses(bags, step)
        entropy = attention_entropy(terms.output, bags, top_k=facts["top_k"])
        if entropy is None:
            raise TypeError(f"method {official.method!r} has no attention")
        total = terms.total + facts["lamda"] * entropy
        total.backward()
        if step.left():
            report.fail(f"draws that the official code consumed and ours did not: {step.left()}")
        comparison = Comparison(recording=recording, report=report, precision=precision)
        output = terms.output
        comparison.answers(output)
        if output.instance_logits is not None:
            comparison.check("instance logits", output.instance_logits, "out.ins_logits")
        comparison.check("loss.bag", terms.total, "out.loss.bag")
        comparison.check("loss.attention_entropy", entropy, "out.loss.neg_entropy")
        comparison.check("loss", total, "out.loss")
        if whole.features.grad is not None:
            comparison.check("gradient of x", whole.features.grad, "grad.x")
        comparison.gradients(model, official)
        if precision.prefix == "":
            answer = model(whole)
            comparison.check("eval logits", answer.logits, "eval.logits")
            # Its log sums p log p over heads or classes and divides by another count: both follow from ours.
            recording.without_comparison("eval.div_loss_logged")
