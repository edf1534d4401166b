"""The op as torch knows it: two custom ops, what shapes they give, and how one is the other's backward pass.

Both are opaque to compilers: they look at lengths and choose a backend when they run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from types import ModuleType
from typing import Any, TypeAlias

import torch
from torch import Tensor

from wsimil.ops.dispatch import Backend
from wsimil.ops.gated_attention_pool import cpu, reference
from wsimil.ops.gated_attention_pool.contract import (
    PoolCotangents,
    PoolForward,
    PoolGradients,
    PoolSpec,
    PoolTensors,
)

_TENSORS = (
    "Tensor h, Tensor w_v, Tensor? b_v, Tensor? w_u, Tensor? b_u, Tensor w, Tensor? c, Tensor cu_seqlens, Tensor? rows,"
    " Tensor? mask_idx, Tensor mask_seed, Tensor drop_seed, Tensor bag_ids"
)
_COTANGENTS = "Tensor? g_z, Tensor? g_lse, Tensor? g_entropy, Tensor? g_gram, Tensor? g_scores, Tensor? g_raw"
_SAVED = "Tensor out_z, Tensor out_lse, Tensor out_entropy, Tensor out_gram, Tensor out_scores, Tensor gates"
_HOW = "str spec, str backend"  # each argument of an operation costs a call some microseconds, and these never change
_FIELDS = len(PoolTensors._fields)
_RESULTS = len(PoolCotangents._fields)
_VALUE: TypeAlias = Any
"""An argument of an operation: a tensor, None, or how to compute."""
_Run: TypeAlias = Callable[..., tuple[Tensor, ...]]


def pool(tensors: PoolTensors, spec: PoolSpec, backend: Backend) -> PoolForward:
    """The forward pass, differentiable once; the reference by plain autograd."""
    if backend == "reference":
        check(tensors)
        with _as_written(tensors):
            return reference.forward(tensors, spec)
    # At its first call an operation imports torch's compiler, which takes more than a second, and every call is slower.
    run = _forward if torch.compiler.is_compiling() else _Pool.apply
    return PoolForward(*run(*tensors, spec.text(), backend))


def check(tensors: PoolTensors) -> None:
    """Raises ValueError for bags, rows or masks that do not fit; not on a GPU, where looking means waiting."""
    count = len(tensors.h if tensors.rows is None else tensors.rows)
    if tensors.cu_seqlens.device.type != "cpu":
        return
    ends = tensors.cu_seqlens.tolist()
    lengths = [end - begin for begin, end in pairwise(ends)]
    if not lengths or ends[0] != 0 or ends[-1] != count or min(lengths) < 1:
        shown = str(ends) if len(ends) <= 8 else f"[{ends[0]}, {ends[1]}, ... {ends[-1]}]"
        raise ValueError(
            f"cu_seqlens: got {shown}, wanted 0, where each further bag begins, and at the end the number of instances, {count},"
            " with one instance or more in every bag"
        )
    if tensors.rows is not None and tensors.rows.device.type == "cpu":
        _check_rows(tensors.rows, len(tensors.h))
    if tensors.mask_idx is not None and tensors.mask_idx.device.type == "cpu" and tensors.mask_idx.numel():
        most = tensors.mask_idx.flatten(1).amax(dim=1).tolist()
        for bag, (largest, length) in enumerate(zip(most, lengths, strict=True)):
            if largest >= length:
                raise ValueError(
                    f"mask.idx: instance {largest} of bag {bag}, which has {length}; instances are counted from 0 within a bag"
                )


def _check_rows(rows: Tensor, count: int) -> None:
    least, most = rows.min().item(), rows.max().item()
    if least < 0 or most >= count:
        raise ValueError(f"rows: got rows from {least} to {most}, wanted 0 to {count - 1}, as h has {count}")
    if int(torch.bincount(rows, minlength=count).max()) > 1:
        raise ValueError("rows: got some row twice, wanted each once; the gradient of h goes to each row once")


def _module(backend: str) -> ModuleType:
    if backend == "triton":
        # Imported where it runs: without triton everything else works.
        from wsimil.ops.gated_attention_pool import kernels

        return kernels
    return cpu


def _as_written(tensors: PoolTensors) -> torch.autocast:
    """Backends choose the type of each product by themselves."""
    return torch.autocast(tensors.h.device.type, enabled=False)


@torch.library.custom_op(
    "wsimil::gated_attention_pool",
    mutates_args=(),
    schema=f"({_TENSORS}, {_HOW}) -> ({', '.join(['Tensor'] * len(PoolForward._fields))})",
)
def _forward(*values: _VALUE) -> tuple[Tensor, ...]:
    return _pooled(*values)


def _pooled(*values: _VALUE) -> tuple[Tensor, ...]:
    tensors = PoolTensors(*values[:_FIELDS])
    check(tensors)
    with _as_written(tensors):
        result: PoolForward = _module(values[-1]).forward(tensors, PoolSpec.of_text(values[_FIELDS]))
    return tuple(result)


@_forward.register_fake
def _(*values: _VALUE) -> tuple[Tensor, ...]:
    t, spec = PoolTensors(*values[:_FIELDS]), PoolSpec.of_text(values[_FIELDS])
    bags, branches = t.cu_seqlens.shape[0] - 1, t.w.shape[0]  # len() would fix them for a compiler
    instances = (t.h if t.rows is None else t.rows).shape[0]
    wide = torch.promote_types(t.h.dtype, torch.float32)
    width = t.w.shape[1] * (1 if t.w_u is None else 2)

    def real(*shape: int) -> Tensor:
        return t.h.new_empty(shape, dtype=wide)

    def index(k: int) -> Tensor:
        return t.h.new_empty((bags, branches, k), dtype=torch.int32)

    return tuple(
        PoolForward(
            z=real(bags, branches, t.h.shape[1]),
            lse=real(bags, branches),
            entropy=real(bags, branches),
            gram=real(bags, branches, branches) if spec.gram else real(0),
            scores=real(branches, instances),
            raw=real(branches, instances) if spec.raw and t.masks(spec) else real(0),
            masked_idx=index(spec.mask_k),
            masked_scores=real(bags, branches, spec.mask_k),
            top_idx=index(spec.top_k),
            bottom_idx=index(spec.bottom_k),
            gates=t.h.new_empty((instances, t.h.shape[1] if spec.over else width) if spec.keep else (0,)),
        )
    )


@torch.library.custom_op(
    "wsimil::gated_attention_pool_backward",
    mutates_args=(),
    schema=f"({_COTANGENTS}, {_TENSORS}, {_SAVED}, bool[] needs, {_HOW}) -> ({', '.join(['Tensor'] * 7)})",
)
def _backward(*values: _VALUE) -> tuple[Tensor, ...]:
    # An operation writes over none of its arguments.
    spec = replace(PoolSpec.of_text(values[-2]), over=False)
    return _gradients(*values[:-2], spec.text(), values[-1])


def _gradients(*values: _VALUE) -> tuple[Tensor, ...]:
    cotangents, tensors, saved, needs, spec = _parts(values)
    with _as_written(tensors):
        gradients: PoolGradients = _module(values[-1]).backward(cotangents, tensors, saved, spec, needs)
    return tuple(tensors.h.new_empty(0) if gradient is None else gradient for gradient in gradients)


@_backward.register_fake
def _(*values: _VALUE) -> tuple[Tensor, ...]:
    _, t, _, needs, _ = _parts(values)
    wanted = zip(t[: len(needs)], needs, strict=True)
    return tuple(
        t.h.new_empty(0)
        if tensor is None or not need
        else torch.empty_like(tensor, memory_format=torch.contiguous_format)
        for tensor, need in wanted
    )


def _parts(values: Sequence[_VALUE]) -> tuple[PoolCotangents, PoolTensors, PoolForward, tuple[bool, ...], PoolSpec]:
    cotangents, rest = PoolCotangents(*values[:_RESULTS]), values[_RESULTS:]
    tensors, rest = PoolTensors(*rest[:_FIELDS]), rest[_FIELDS:]
    z, lse, entropy, gram, scores, gates, needs, spec, _ = rest
    unused = tensors.h.new_empty(0)
    saved = PoolForward(
        z=z,
        lse=lse,
        entropy=entropy,
        gram=gram,
        scores=scores,
        raw=unused,
        masked_idx=unused,
        masked_scores=unused,
        top_idx=unused,
        bottom_idx=unused,
        gates=gates,
    )
    return cotangents, tensors, saved, tuple(needs), PoolSpec.of_text(spec)


def _setup(ctx: Any, inputs: tuple[_VALUE, ...], output: tuple[Tensor, ...], *, gates: Tensor | None = None) -> None:
    result = PoolForward(*output)
    ctx.mark_non_differentiable(
        result.masked_idx, result.masked_scores, result.top_idx, result.bottom_idx, result.gates
    )
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(
        *inputs[:_FIELDS],
        *(result.z, result.lse, result.entropy, result.gram, result.scores),
        result.gates if gates is None else gates,
    )
    ctx.how = inputs[_FIELDS:]


def _differentiate(
    ctx: Any, *cotangents: Tensor | None, gates: Tensor | None = None, run: _Run = _backward
) -> tuple[Tensor | None, ...]:
    saved = ctx.saved_tensors  # once: a checkpoint computes them again at each look
    needs = [
        bool(need) and tensor is not None for need, tensor in zip(ctx.needs_input_grad[:7], saved[:7], strict=True)
    ]
    wide = [None if g is None or g.shape == (0,) else g.contiguous() for g in cotangents[:_RESULTS]]
    gradients = run(*wide, *(saved if gates is None else (*saved[:-1], gates)), needs, *ctx.how)
    found = [gradient if need else None for gradient, need in zip(gradients, needs, strict=True)]
    return (*found, *[None] * (_FIELDS - 7 + len(ctx.how)))


def _refuse(ctx: Any, *cotangents: Tensor | None) -> None:
    raise NotImplementedError(
        "gated_attention_pool can be differentiated once; for second derivatives take backend='reference'"
    )


_forward.register_autograd(_differentiate, setup_context=_setup)
_backward.register_autograd(_refuse)


class _Pool(torch.autograd.Function):
    """What the operation is, without an operation."""

    @staticmethod
    def forward(*values: _VALUE) -> tuple[Tensor, ...]:
        """See `_forward`."""
        return _pooled(*values)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[_VALUE, ...], output: tuple[Tensor, ...]) -> None:
        """See `_setup`; gates that a backward pass may write over are no saved tensor, which nobody may write to."""
        result = PoolForward(*output)
        spent = PoolSpec.of_text(inputs[_FIELDS]).over
        ctx.gates = result.gates if spent else None
        _setup(ctx, inputs, output, gates=result.gates.new_empty(0) if spent else result.gates)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
        """See `_differentiate`; by the operation, which refuses to be differentiated, where that might be asked."""
        gates = ctx.gates
        if torch.is_grad_enabled():
            return _differentiate(ctx, *cotangents, gates=gates)
        ctx.gates = None
        return _differentiate(ctx, *cotangents, gates=gates, run=_gradients)
