"""MHIM-MIL: its baselines, without dropout, and a step with the recorded masks."""

from __future__ import annotations

from dataclasses import replace

import torch

from wsimil.errors import WsimilError
from wsimil.mil.checkpoints.base import build, describe
from wsimil.ops.segment_max import segment_max
from wsimil.testing.parity.recording import Recording
from wsimil.testing.parity.report import Report
from wsimil.testing.parity.step import Comparison, precisions, take_step, without_dropout

_BASELINES = ("modules.abmil.", "modules.mean_max.")


def replay(recording: Recording, report: Report) -> None:
    """Compare all that the file expects. Raises WsimilError for a class that is not ours yet."""
    facts = recording.config
    if not str(facts["cls"]).startswith(_BASELINES):
        raise WsimilError(f"no replay is known for {facts['cls']!r}")
    config: dict[str, str | float] = {}
    if "mean_max" in facts["cls"]:
        config["pool"] = "max" if "Max" in facts["cls"] else "mean"
    else:
        config["activation"] = facts["act"]
    for precision in precisions(recording):
        state = recording.state(dtype=precision.dtype)
        official = describe("mhim", state)
        model = build(official, state, config={**config, **without_dropout(official)})
        bags = recording.bag(dtype=precision.dtype)
        terms = take_step(model, bags, replace(recording.step(), draws={}), report=report)
        output = terms.output
        comparison = Comparison(recording=recording, report=report, precision=precision)
        comparison.answers(output)
        comparison.check("loss", terms.total, "out.loss")
        if output.instance_logits is not None and "out.argmax" in recording:
            rows = segment_max(output.instance_logits, bags.cu_seqlens).rows
            report.compare("rows of the maxima", rows, recording.array("out.argmax"))
        comparison.features_gradient(bags)
        comparison.gradients(model, official)
        if precision.dtype == torch.float32 and "train.out.logits" in recording:
            model = build(official, state, config=config)
            bags = recording.bag()
            terms = take_step(model, bags, recording.step(), report=report)
            comparison.check("logits of a step", terms.output.logits, "train.out.logits")
            comparison.check("loss of a step", terms.total, "train.out.loss")
            comparison.features_gradient(bags, "train.grad.x")
