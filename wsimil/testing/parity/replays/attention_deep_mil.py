"""AttentionDeepMIL: the attention on embedded instances and its Bernoulli objective."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from wsimil.mil.checkpoints.base import build, describe
from wsimil.testing.parity.recording import Recording
from wsimil.testing.parity.report import Report
from wsimil.testing.parity.step import Comparison, precisions, take_step

_CLAMP = 1e-5


def replay(recording: Recording, report: Report) -> None:
    """Compare all that the file expects."""
    for precision in precisions(recording):
        state = recording.state(dtype=precision.dtype)
        official = describe("attention_deep_mil", state)
        model = build(official, state)
        bags = recording.bag("in.h", dtype=precision.dtype)
        terms = take_step(model, bags, recording.step(criterion=_bernoulli), report=report)
        output = terms.output
        scores = output.attention_logits
        comparison = Comparison(recording=recording, report=report, precision=precision)
        comparison.check("logits", output.logits, "out.logit")
        comparison.check("probability", output.logits.sigmoid(), "out.prob")
        if scores is not None:
            comparison.check("attention", scores.T, "out.attn_raw")
            comparison.check("attention", scores.softmax(dim=0).T, "out.attn")
        comparison.check("loss", terms.total, "out.loss")
        comparison.features_gradient(bags, "grad.h")
        comparison.gradients(model, official)


def _bernoulli(logits: Tensor, targets: Tensor) -> Tensor:
    p = logits.sigmoid().clamp(_CLAMP, 1 - _CLAMP)
    return F.binary_cross_entropy(p[:, 0], targets.to(p.dtype))
