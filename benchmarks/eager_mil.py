"""Training steps of MIL methods as one writes them down from the papers: the peers that benchmarks/training.py measures beside.

Plain torch on one bag, nothing held that the formulas do not name, in the order of operations of the official codes: dropouts as
layers of their own, keys and values of every branch, the student of MHIM-MIL embedding all instances before it drops some, the
products of TransMIL's Nyström attention from the left. Weights come from a model of wsimil, so that both can be held to one loss.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

Weights = Mapping[str, Tensor]
Loss = Callable[[Weights, Tensor, Tensor, bool], Tensor]
"""(weights, features [N, D], target [1], with dropouts and random masks) -> loss."""


def abmil(w: Weights, x: Tensor, y: Tensor, _drops: bool) -> Tensor:
    """Gated attention as ACMIL and AEM have it: no bias in the embedding, no dropout. arXiv:1802.04712."""
    h = F.relu(F.linear(x, w["embed.linear.weight"]))
    z = _gated(w, h).softmax(dim=1) @ h
    return F.cross_entropy(_linear(w, "classifier", z), y)


def clam(w: Weights, x: Tensor, y: Tensor, drops: bool) -> Tensor:
    """CLAM-SB with cross-entropy of the instances; arXiv:2004.09666."""
    h = F.dropout(F.relu(_linear(w, "embed.linear", x)), 0.25, drops)
    value = F.dropout(torch.tanh(_linear(w, "attention.value", h)), 0.25, drops)
    gate = F.dropout(torch.sigmoid(_linear(w, "attention.gate", h)), 0.25, drops)
    p = _linear(w, "attention.score", value * gate).t().softmax(dim=1)
    bag = F.cross_entropy(_linear(w, "classifier", p @ h), y)
    rows = torch.cat([p[0].topk(8).indices, (-p[0]).topk(8).indices])
    judged = _linear(w, f"instance_classifiers.{int(y)}", h[rows])
    labels = torch.tensor([1] * 8 + [0] * 8)
    return 0.7 * bag + 0.3 * F.cross_entropy(judged, labels)


def acmil(w: Weights, x: Tensor, y: Tensor, drops: bool) -> Tensor:
    """ACMIL with five branches of gated attention; arXiv:2311.07125."""
    h = F.relu(F.linear(x, w["embed.linear.weight"]))
    scores = _stkim(_gated(w, h), drops)  # [5, N]
    p = scores.softmax(dim=1)
    branches = torch.cat([_linear(w, f"branch_classifiers.{m}", p[m : m + 1] @ h) for m in range(len(p))])
    slide = _linear(w, "classifier", p.mean(dim=0, keepdim=True) @ h)
    return _acmil_loss(slide, branches, y, [p])


def acmil_multihead(w: Weights, x: Tensor, y: Tensor, drops: bool) -> Tensor:
    """ACMIL with five branches of eight heads each, which project keys and values of all instances."""
    h = F.relu(F.linear(x, w["embed.linear.weight"]))
    branches, scores = [], []
    for m in range(5):
        name = f"branches.{m}"
        q = _heads(_linear(w, f"{name}.q_proj", w["queries"][m : m + 1]))
        k, v = (_heads(_linear(w, f"{name}.{part}_proj", h)) for part in "kv")
        a = _stkim((q @ k.transpose(1, 2) / math.sqrt(k.shape[2]))[:, 0], drops)  # [8, N]
        scores.append(a)
        branches.append(_linear(w, f"branch_classifiers.{m}", _joined(w, name, a.softmax(dim=1), v, drops)))
    p = torch.stack(scores).softmax(dim=2)  # [5, 8, N]
    v = _heads(_linear(w, "bag.v_proj", h))
    slide = _linear(w, "classifier", _joined(w, "bag", p.mean(dim=0), v, drops))
    return _acmil_loss(slide, torch.cat(branches), y, list(p.unbind(dim=1)))


def mhim(w: Weights, x: Tensor, y: Tensor, drops: bool) -> Tensor:
    """MHIM-MIL over ABMIL, the recipe of CAMELYON16: half of all instances and half of the best 2 % hidden; ICCV 2023."""
    with torch.no_grad():
        embedded = F.dropout(F.relu(_linear(w, "teacher.method.embed.linear", x)), 0.25, drops)
        attention = _plain(w, "teacher.method", embedded).softmax(dim=1)
        taught = attention @ embedded
    h = F.dropout(F.relu(_linear(w, "student.method.embed.linear", x)), 0.25, drops)
    hidden = torch.zeros(len(x), dtype=torch.bool)
    if drops:
        hidden[torch.randperm(len(x))[: math.ceil(0.5 * len(x))]] = True
    most = math.ceil(len(x) * (0.01 / 0.5 if drops else 0.01))
    best = attention[0].topk(most).indices
    hidden[best[torch.randperm(most)[: math.ceil(0.5 * most)]] if drops else best] = True
    seen = h[~hidden]
    z = _plain(w, "student.method", seen).softmax(dim=1) @ seen
    loss = F.cross_entropy(_linear(w, "student.method.classifier", z), y)
    return loss - 0.1 * ((taught / 0.1).softmax(dim=1) * z.log_softmax(dim=1)).sum()


def mhim_after_step(w: Weights) -> None:
    """The teacher follows the student."""
    for name, teacher in w.items():
        if name.startswith("teacher."):
            teacher.mul_(0.9999).add_(w["student." + name.removeprefix("teacher.")], alpha=1 - 0.9999)


def transmil(w: Weights, x: Tensor, y: Tensor, drops: bool) -> Tensor:
    """TransMIL with nystrom-attention as it is from version 0.0.11 on; arXiv:2106.00908."""
    h = F.relu(_linear(w, "embed.linear", x))
    side = math.ceil(math.sqrt(len(h)))
    t = torch.cat([w["class_token"], h, h[: side * side - len(h)]])
    t = t + _nystrom(w, "layer1", t, drops)
    image = t[1:].t().reshape(1, -1, side, side)
    placed = image
    for kernel in (7, 5, 3):
        mixed = F.conv2d(
            image,
            w[f"ppeg.conv{kernel}.weight"],
            w[f"ppeg.conv{kernel}.bias"],
            padding=kernel // 2,
            groups=len(image[0]),
        )
        placed = placed + mixed
    t = torch.cat([t[:1], placed[0].flatten(1).t()])
    t = t + _nystrom(w, "layer2", t, drops)
    return F.cross_entropy(
        _linear(w, "classifier", F.layer_norm(t, t.shape[1:], w["norm.weight"], w["norm.bias"])[:1]), y
    )


def _linear(w: Weights, name: str, x: Tensor) -> Tensor:
    return F.linear(x, w[f"{name}.weight"], w.get(f"{name}.bias"))


def _gated(w: Weights, h: Tensor) -> Tensor:
    gate = torch.tanh(_linear(w, "attention.value", h)) * torch.sigmoid(_linear(w, "attention.gate", h))
    return _linear(w, "attention.score", gate).t()


def _plain(w: Weights, name: str, h: Tensor) -> Tensor:
    return _linear(w, f"{name}.attention.score", F.relu(_linear(w, f"{name}.attention.value", h))).t()


def _stkim(scores: Tensor, drops: bool) -> Tensor:
    """Six of the ten highest of each row are taken out, before the softmax."""
    if not drops:
        return scores
    best = scores.topk(10, dim=1).indices
    order = torch.rand(best.shape).argsort(dim=1)[:, :6]
    return scores.scatter(1, best.gather(1, order), -1e9)


def _acmil_loss(slide: Tensor, branches: Tensor, y: Tensor, heads: list[Tensor]) -> Tensor:
    loss = F.cross_entropy(slide, y) + F.cross_entropy(branches, y.repeat(len(branches)))
    count = len(branches)
    for p in heads:
        pairs = [F.cosine_similarity(p[i], p[j], dim=0) for i in range(count) for j in range(i + 1, count)]
        loss = loss + torch.stack(pairs).mean() / len(heads)
    return loss


def _heads(x: Tensor) -> Tensor:
    return x.view(len(x), 8, -1).transpose(0, 1)  # [8, N, d]


def _joined(w: Weights, name: str, p: Tensor, v: Tensor, drops: bool) -> Tensor:
    mixed = _linear(w, f"{name}.out_proj", (p[:, None] @ v).transpose(0, 1).flatten(1))
    mixed = F.dropout(mixed, 0.1, drops)
    return F.layer_norm(mixed, mixed.shape[1:], w[f"{name}.norm.weight"], w[f"{name}.norm.bias"], eps=1e-6)


def _nystrom(w: Weights, name: str, t: Tensor, drops: bool) -> Tensor:
    x = F.layer_norm(t, t.shape[1:], w[f"{name}.norm.weight"], w[f"{name}.norm.bias"])
    x = F.pad(x, (0, 0, -len(t) % 256, 0))
    q, k, v = (_heads(part) for part in F.linear(x, w[f"{name}.attention.to_qkv.weight"]).chunk(3, dim=1))
    q = q / 8
    q_marks, k_marks = (part.reshape(8, 256, -1, 64).mean(dim=2) for part in (q, k))
    first = (q @ k_marks.transpose(1, 2)).softmax(dim=2)
    second = (q_marks @ k_marks.transpose(1, 2)).softmax(dim=2)
    third = (q_marks @ k.transpose(1, 2)).softmax(dim=2)
    size = second.abs()
    z = second.transpose(1, 2) / (size.sum(dim=2).max() * size.sum(dim=1).max())
    eye = torch.eye(256)
    for _ in range(6):
        az = second @ z
        z = 0.25 * z @ (13 * eye - az @ (15 * eye - az @ (7 * eye - az)))
    out = (first @ z) @ (third @ v)
    conv = w[f"{name}.attention.conv.weight"]  # [8, 1, 33]
    out = out + F.conv2d(v[None], conv[..., None], padding=(16, 0), groups=8)[0]
    out = _linear(w, f"{name}.attention.to_out", out.transpose(0, 1).flatten(1))
    return F.dropout(out, 0.1, drops)[-len(t) :]
