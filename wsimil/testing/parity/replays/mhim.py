"""MHIM-MIL: its baselines, its masks, its schedules, and whole steps of versions 1 and 2 with Adam and the moving teacher."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from pydantic import JsonValue
from torch import Tensor, nn

from wsimil.errors import ModelError, WsimilError
from wsimil.mil.batch import StepContext
from wsimil.mil.checkpoints.base import OfficialModel, build, describe
from wsimil.mil.layers.momentum import consistency, follow, rising
from wsimil.mil.layers.nystrom import NystromAttention
from wsimil.mil.layers.recycle import RecycleNetwork
from wsimil.mil.masking import RankMasking
from wsimil.mil.methods.mhim import MHIM
from wsimil.ops.segment_max import segment_max
from wsimil.testing.parity.recording import Recording
from wsimil.testing.parity.report import Report
from wsimil.testing.parity.step import (
    Comparison,
    convolve_as_recorded,
    dropouts,
    precisions,
    take_step,
    without_dropout,
)

_RANKS = {
    "mask_ratio": "random",
    "mask_ratio_l": "low",
    "mask_ratio_h": "high",
    "mask_ratio_hr": "high_share",
    "select_inv": "invert",
    "msa_fusion": "fusion",
}


def replay(recording: Recording, report: Report) -> None:
    """Compare all that the file expects. Raises WsimilError for a class that is not ours."""
    replays = {
        "modules.abmil.": _baseline,
        "modules.mean_max.": _baseline,
        "modules.mhim.MHIM.get_mask": _masks,
        "modules.mhim.MHIM ": _step,
        "utils.ema_update": _schedules,
        "modules.mhim_modules.": _parts,
    }
    for start, one in replays.items():
        if str(recording.config["cls"]).startswith(start):
            one(recording, report)
            return
    raise WsimilError(f"no replay is known for {recording.config['cls']!r}")


def _baseline(recording: Recording, report: Report) -> None:
    facts = recording.config
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


def _masks(recording: Recording, report: Report) -> None:
    """Each strategy on recorded attention, of one head and of eight, with the recorded permutations."""
    facts = recording.config
    for case in sorted({key.rpartition(".mask_ids")[0] for key in recording.keys("case.") if ".mask_ids" in key}):
        mask, attention = _case(recording, case)
        names = sorted(recording.keys(f"case.{case}.randperm."), key=int)
        draws = {"randperm": deque(recording.array(f"case.{case}.randperm.{name}") for name in names)}
        step = replace(recording.step(), draws=draws)
        masked = mask.choose(attention, step, official=True)
        ids, count = recording.array(f"case.{case}.mask_ids"), int(recording.array(f"case.{case}.len_keep"))
        report.compare_sets("kept instances", (~masked).nonzero(), ids[:count], detail=case)
        if step.left():
            report.fail(f"{case}: permutations that ours did not draw: {step.left()}")
    for case in facts["errors"]:
        mask, attention = _case(recording, case.removeprefix("case.").rstrip("."))
        try:
            mask.choose(attention, StepContext(generator=torch.Generator(), progress=0.0), official=True)
        except ModelError:
            continue
        report.fail(f"{case}: the official code raises, ours did not")


def _case(recording: Recording, case: str) -> tuple[RankMasking, Tensor]:
    heads, fusion, strategy = case.split(".", 2)
    attention = torch.from_numpy(recording.array("in.attn_single" if heads == "single" else "in.attn_heads"))
    mask = RankMasking.model_validate({**_ranks(recording.config["strategies"][strategy]), "fusion": fusion})
    return mask, attention.view(-1, recording.config["N"]).T


def _ranks(theirs: Mapping[str, float | bool]) -> dict[str, JsonValue]:
    """Their arguments of a mask as ours."""
    return {ours: theirs[name] for name, ours in _RANKS.items() if name in theirs}


def _schedules(recording: Recording, report: Report) -> None:
    """The moving average, the two schedules and the consistency loss, each by itself."""
    for key in recording.keys("ema.target_after."):
        momentum, _, name = key.removeprefix("mm").rpartition(".")
        target, online = (
            nn.ParameterList([nn.Parameter(torch.from_numpy(recording.array(f"ema.{who}.{name}")).clone())])
            for who in ("target_before", "online")
        )
        follow(target, online, float(momentum))
        report.compare("moving average", target[0], recording.array(f"ema.target_after.{key}"), detail=key)
    for key in recording.keys("sched."):
        theirs = recording.array(f"sched.{key}")
        name, start = key.partition("_to_")[0].split("_", 1)
        value = float(start.lstrip("h"))
        mask = RankMasking(high=value, decay=True) if name == "mrh" else None
        ours = [
            rising(value, i / len(theirs)) if mask is None else mask.high_at(i / len(theirs))
            for i in range(len(theirs))
        ]
        report.compare("schedules", torch.tensor(ours, dtype=torch.float64), theirs, detail=key)
    for key in recording.keys("cl.loss."):
        hot, cold = (float(part[2:]) for part in key.split("_"))
        student = torch.from_numpy(recording.array("cl.student")).clone().requires_grad_()
        teacher = torch.from_numpy(recording.array("cl.teacher"))
        loss = consistency(student, teacher, student_temperature=cold, teacher_temperature=hot)
        (gradient,) = torch.autograd.grad(loss, student)
        report.compare("consistency loss", loss, recording.array(f"cl.loss.{key}"), detail=key)
        report.compare(
            "gradient of the consistency loss", gradient, recording.array(f"cl.grad_student.{key}"), detail=key
        )


def _step(recording: Recording, report: Report) -> None:
    """One step of student and teacher, Adam, the moving average, and both on whole bags."""
    facts = recording.config
    kwargs = facts["mhim_kwargs"]
    for precision in precisions(recording):
        state = recording.state(dtype=precision.dtype)
        official = describe("mhim", state)
        options = dict(official.config)
        base: dict[str, Any] = dict(options["base"])  # type: ignore[arg-type]
        config: dict[str, JsonValue] = {
            "base": base,
            "mask": _ranks(kwargs),
            "momentum": facts["mm"],
            "consistency_weight": facts.get("cl_alpha", facts.get("aux_alpha")),
            "teacher_temperature": facts["temp_t"],
            "student_temperature": facts["temp_s"],
            "compat": "official",
        }
        if "act" in facts:
            base["activation"] = facts["act"]
        if "attn_layer" in kwargs:
            base["attention_layer"] = range(1, 3)[kwargs["attn_layer"]]
        if kwargs.get("attn2score") is False:
            config["score"] = "attention"
            if base["name"] == "dsmil":
                config["mask"] = {**_ranks(kwargs), "fusion": "max"}
        recycle = options.get("recycle")
        if isinstance(recycle, dict):
            config["recycle"] = {
                **recycle, "heads": facts["head"], "keep": kwargs["merge_ratio"], "momentum": kwargs["merge_mm"]
            }  # fmt: skip
        if str(facts["dropout"]).startswith("off"):
            base |= dict.fromkeys(dropouts(base["name"]), 0.0)
            if isinstance(config.get("recycle"), dict):
                config["recycle"] = {**config["recycle"], "dropout": 0.0}  # type: ignore[dict-item]
        model = build(official, state, config=config)
        if not isinstance(model, MHIM):
            raise TypeError(f"wanted MHIM, got {type(model).__name__}")
        comparison = Comparison(recording=recording, report=report, precision=precision)
        _at_inference(model, recording, comparison)
        if precision.dtype == torch.float32:
            convolve_as_recorded(model)
        bags = recording.bag(dtype=precision.dtype)
        step = recording.step()
        terms = take_step(model, bags, step, report=report)
        output, details = terms.output, terms.details
        comparison.check("logits", output.logits, "out.logits")
        if output.instance_logits is not None and terms.seen is not None:
            highest = segment_max(output.instance_logits, terms.seen.cu_seqlens).values
            comparison.check("highest logits", highest, "out.ins_logits")
        comparison.check("embedding", output.embedding, "out.student.feat")
        comparison.check("teacher's embedding", details["teacher_embedding"], "out.teacher.feat")
        for key in ("out.teacher.attn", "out.teacher.score"):
            comparison.check("teacher's scores", details["teacher_scores"].T, key)
        kept = int(recording.array("out.len_keep" if "out.len_keep" in recording else "out.len_keep_after_mask"))
        ids = recording.array("out.mask_ids")
        report.compare_sets("kept instances", details["kept"], ids[:kept])
        report.compare("order of kept instances", details["kept"], ids[:kept])
        if "out.n_tokens_to_encoder" in recording:
            report.compare(
                "tokens of the encoder", details["shown"].double(), recording.array("out.n_tokens_to_encoder")
            )
        bag = sum(terms.weights.get(name, 1.0) * term for name, term in terms.terms.items() if name != "consistency")
        comparison.check("loss of the bag", bag, "out.loss.ce")
        comparison.check("loss of consistency", terms.terms["consistency"], "out.loss.cl")
        comparison.check("loss", terms.total, "out.loss")
        comparison.features_gradient(bags)
        comparison.gradients(model, _of_student(official))
        if model.student.recycle is not None:
            comparison.check(
                "queries after forward", model.student.recycle.queries, "after_forward.student.merge.global_q_mm"
            )
        # Adam as its recipe has it, on all that learns.
        learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
        rates = {name: float(value) for name, value in re.findall(r"(\w+)=([\d.e-]+)", facts["optimizer"])}
        torch.optim.Adam(learned, lr=rates["lr"], weight_decay=rates["weight_decay"]).step()
        model.after_step(step)
        _weights(model, official, recording, comparison)


def _at_inference(model: MHIM, recording: Recording, comparison: Comparison) -> None:
    """Student and teacher on the whole bag, before the step."""
    with torch.no_grad():
        bags = recording.bag(dtype=comparison.precision.dtype)
        answer = model(bags)
        comparison.check("logits at inference", answer.logits, "eval.student.logits")
        if answer.instance_logits is not None:
            highest = segment_max(answer.instance_logits, bags.cu_seqlens).values
            comparison.check("highest logits at inference", highest, "eval.student.ins_logits")
        teacher = model.teacher.method(bags)
        comparison.check("teacher's logits at inference", teacher.logits, "eval.teacher.logits")
        comparison.check("teacher's embedding at inference", teacher.embedding, "eval.teacher.feat")
        lesson = model.teach(bags, None)
        for key in ("eval.teacher.attn", "eval.teacher.score"):
            comparison.check("teacher's scores at inference", lesson.scores.T, key)
        for layer in (1, 2):
            key = f"eval.teacher.attn_layer{layer - 1}"
            if comparison.has(key):
                model.teacher.method.attention_layer = layer  # type: ignore[assignment]
                comparison.check("teacher's scores at inference", model.teach(bags, None).scores.T, key)
        if comparison.has("eval.teacher.attn_layer0"):
            model.teacher.method.attention_layer = 1  # type: ignore[assignment]
        recycle = model.student.recycle
        if recycle is not None:
            comparison.check("recycled tokens", recycle(model.embed_instances(bags, None), None), "eval.merge_tokens")
            options = model.options
            model.options = options.model_copy(
                update={"recycle": options.recycle and options.recycle.model_copy(update={"at_inference": True})}
            )
            comparison.check("logits with tokens", model(bags).logits, "eval.student_merge_test.logits")
            model.options = options


def _weights(model: MHIM, official: OfficialModel, recording: Recording, comparison: Comparison) -> None:
    """All weights after the step, as they are or their norms."""
    ours = model.state_dict()
    for kind in ("after.", "after_norm."):
        for key in recording.keys(comparison.precision.prefix + kind):
            theirs = kind + key
            name = official.names.get(key)
            if key.endswith("merge.global_q"):
                name = official.names[f"{key}_mm"]
            if name is None:
                # DSMIL's encoder carries a predictor that nothing asks.
                recording.without_comparison(comparison.precision.prefix + theirs)
                continue
            value = ours[name].double().norm() if kind == "after_norm." else ours[name]
            comparison.check(f"weights of the {name.partition('.')[0]} after", value, theirs)


def _parts(recording: Recording, report: Report) -> None:
    """The class-aware score and the recycle network of version 2, each by itself."""
    facts = recording.config
    state = recording.state()
    classifier = state["predictor.weight"]

    def score(values: Tensor) -> Tensor:
        return (values @ classifier.T).softmax(dim=1).amax(dim=1)

    feat, attention = (torch.from_numpy(recording.array(f"score.in.{name}"))[0] for name in ("feat", "attn"))
    report.compare("class-aware score", score(attention[:, None] * feat), recording.array("score.out"))
    values, weights = (torch.from_numpy(recording.array(f"score_trans.in.{name}"))[0] for name in ("v", "attn"))
    width = classifier.shape[1]
    layer = NystromAttention(
        width, heads=len(values), head_dim=values.shape[2], landmarks=2, iterations=1, kernel=1, drop=0.0
    )
    layer.to_out.load_state_dict({"weight": state["to_out.0.weight"], "bias": state["to_out.0.bias"]})
    report.compare("class-aware score", score(layer.said(values, weights, None)), recording.array("score_trans.out"))
    options = facts["merge"]
    network = RecycleNetwork(
        width, tokens=options["k"], heads=options["heads"], head_dim=options["merge_h_dim"], drop=options["dropout"]
    )
    network.load_state_dict(
        {
            "queries": state["merge.global_q_mm"][0],
            "norm.weight": state["merge.norm.weight"],
            "norm.bias": state["merge.norm.bias"],
            "to_q.weight": state["merge.attn.to_q.weight"],
            "to_kv.weight": state["merge.attn.to_kv.weight"],
            "to_out.weight": state["merge.attn.to_out.0.weight"],
            "to_out.bias": state["merge.attn.to_out.0.bias"],
        }
    )
    x = torch.from_numpy(recording.array("merge.in.x"))[0].requires_grad_()
    whole = torch.cat([x, network(x, None)])
    report.compare("recycled tokens at inference", whole, recording.array("merge.eval.out"))
    step = recording.step()
    order = step.uniform((len(x),), device=x.device).argsort()
    count = int(len(x) * options["merge_ratio"])
    tokens = network(x[order[count:]], step)
    out = torch.cat([x[order[:count]], tokens])
    report.compare("recycled tokens", out, recording.array("merge.train.out"))
    network.remember(tokens.detach(), options["g_q_mm"])
    report.compare("queries after forward", network.queries, recording.array("merge.train.after.global_q_mm"))
    out.backward(torch.from_numpy(recording.array("merge.in.cotangent"))[0])  # type: ignore[no-untyped-call]
    report.compare("gradient of x", x.grad if x.grad is not None else x * 0, recording.array("merge.train.grad.x"))
    names = {"attn.to_out.0": "to_out", "attn.to_q": "to_q", "attn.to_kv": "to_kv", "norm": "norm"}
    for key in recording.keys("merge.train.grad.state."):
        layer_name, _, leaf = key.rpartition(".")
        gradient = network.get_parameter(f"{names[layer_name]}.{leaf}").grad
        theirs = recording.array(f"merge.train.grad.state.{key}")
        report.compare("gradients", torch.zeros(()) if gradient is None else gradient, theirs, detail=key)


def _of_student(official: OfficialModel) -> OfficialModel:
    """Gradients are recorded under the student's own names."""
    names = {t.removeprefix("student."): ours for t, ours in official.names.items() if t.startswith("student.")}
    return replace(official, names=names)
