"""DSMIL: both streams, their losses and gradients."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from wsimil.mil.checkpoints.base import build, describe
from wsimil.ops.segment_max import segment_max
from wsimil.testing.parity.recording import Recording
from wsimil.testing.parity.report import FLOAT32, Report
from wsimil.testing.parity.step import Comparison, precisions, take_step


def replay(recording: Recording, report: Report) -> None:
    """Compare all that the file expects."""
    labels = torch.from_numpy(recording.array("in.label"))

    def criterion(logits: Tensor, _: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype).view_as(logits))

    # The official code divides scores by a square root that was rounded to float32, also in the float64 pass.
    for precision in (replace(precision, bound=FLOAT32) for precision in precisions(recording)):
        state = recording.state(dtype=precision.dtype)
        official = describe("dsmil", state)
        model = build(official, state)
        bags = recording.bag(dtype=precision.dtype)
        terms = take_step(model, bags, recording.step(criterion=criterion), report=report)
        output = terms.output
        comparison = Comparison(recording=recording, report=report, precision=precision)
        comparison.check("logits", output.logits, "out.logits")
        comparison.check("pooled vectors", output.embedding, "out.B")
        if output.instance_logits is not None:
            best = segment_max(output.instance_logits, bags.cu_seqlens)
            comparison.check("instance logits", output.instance_logits, "out.ins_logits")
            comparison.check("highest logits", best.values, "out.max_logits")
            comparison.check("critical instances", best.rows, "out.critical_idx")
        if output.attention_logits is not None:
            comparison.check("attention", output.attention_logits.softmax(dim=0), "out.attn")
        comparison.check("loss.bag", terms.terms["bag"], "out.loss.bag")
        comparison.check("loss.max", terms.terms["max"], "out.loss.max")
        comparison.check("loss", terms.total, "out.loss")
        comparison.features_gradient(bags)
        comparison.gradients(model, official)
