"""MIL-Lab: gated ABMIL in eval mode, and a padded batch of two bags, which with us is a pack."""

from __future__ import annotations

from dataclasses import replace

import torch

from wsimil.mil.batch import pack
from wsimil.mil.checkpoints.base import build, describe
from wsimil.testing.parity.recording import Recording
from wsimil.testing.parity.report import Report
from wsimil.testing.parity.step import Comparison, precisions, take_step, without_dropout


def replay(recording: Recording, report: Report) -> None:
    """Compare all that the file expects."""
    for precision in precisions(recording):
        state = recording.state(dtype=precision.dtype)
        official = describe("mil_lab", state)
        model = build(official, state, config=without_dropout(official))
        bags = recording.bag(dtype=precision.dtype)
        terms = take_step(model, bags, replace(recording.step(), draws={}), report=report)
        output = terms.output
        comparison = Comparison(recording=recording, report=report, precision=precision)
        comparison.answers(output)
        comparison.check("embedding", output.embedding, "out.slide_feats")
        comparison.check("loss", terms.total, "out.loss")
        comparison.features_gradient(bags)
        comparison.gradients(model, official)
        if "batch.mask" in recording:
            # The second bag holds the first rows of the first at half their size, as the note of the file says.
            lengths = recording.array("batch.mask").sum(axis=1).astype(int).tolist()
            x = bags.features.detach()
            parts = [x[: lengths[0]], 0.5 * x[: lengths[1]]]
            rows = [torch.zeros(len(part), 2, dtype=torch.int64) for part in parts]
            packed = pack(parts, xy0=rows, slide_ids=["a", "b"])
            comparison.check("logits of a batch", model(packed).logits, "batch.logits")
            recording.without_comparison("batch.note_x1")
