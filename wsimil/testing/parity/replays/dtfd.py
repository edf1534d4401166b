"""DTFD-MIL: a step of both tiers with gradients clipped module by module, and the second loss let through to the first tier."""

from __future__ import annotations

import torch

from wsimil.mil.base import MILModel
from wsimil.mil.checkpoints.base import OfficialModel, build, describe
from wsimil.testing.parity.recording import RecordedStep, Recording
from wsimil.testing.parity.report import Report
from wsimil.testing.parity.step import Comparison, precisions, take_step


def replay(recording: Recording, report: Report) -> None:
    """Compare all that the file expects."""
    facts = recording.config
    config: dict[str, str | int] = {
        "distill": str(facts["distill"]).lower(),
        "pseudo_bags": facts["numGroup"],
        "distilled": facts["total_instance"],
    }
    for precision in precisions(recording):
        state = recording.state(dtype=precision.dtype)
        official = describe("dtfd", state)
        comparison = Comparison(recording=recording, report=report, precision=precision)
        model = build(official, state, config=config)
        bags = recording.bag(dtype=precision.dtype)
        terms = take_step(model, bags, _step(recording), report=report)
        comparison.check("logits", terms.output.logits, "out.logits")
        comparison.check("logits of pseudo-bags", terms.details["pseudo_logits"], "out.tier1_logits")
        comparison.check("loss.tier1", terms.terms["tier1"], "out.loss.tier1")
        comparison.check("loss.tier2", terms.terms["tier2"], "out.loss.tier2")
        for prefix in ("classifier.", "dim_reduction.", "attention.", "att_classifier."):
            _clip(model, official, prefix, facts["grad_clipping"])
        for tier in ("tier1", "tier2"):
            comparison.gradients_below(f"grad.{tier}.", model, official)
        # As the official loop does it: the first loss, its gradients clipped, and on top of them what the second lets through.
        model = build(official, state, config={**config, "end_to_end": True})
        bags = recording.bag(dtype=precision.dtype)
        terms = model.losses(bags, _step(recording))
        terms.terms["tier1"].backward(retain_graph=True)  # type: ignore[no-untyped-call]  # torch does not type it
        for prefix in ("classifier.", "dim_reduction.", "attention."):
            _clip(model, official, prefix, facts["grad_clipping"])
        terms.terms["tier2"].backward()  # type: ignore[no-untyped-call]
        comparison.gradients_below("gradnorm.tier1_plus_leak.", model, official)
        comparison.features_gradient(bags, "grad.x_both_tiers")


def _step(recording: Recording) -> RecordedStep:
    step = recording.step()
    step.draws["shuffle"].popleft()  # the order of slides in the epoch
    return step


def _clip(model: MILModel, official: OfficialModel, prefix: str, limit: float) -> None:
    names = [ours for theirs, ours in official.names.items() if theirs.startswith(prefix)]
    torch.nn.utils.clip_grad_norm_([model.get_parameter(name) for name in names], limit)
