"""The Triton kernels on a GPU: within plain torch's error of float64, the same bits again and again, and never waiting.

An error is relative, by Frobenius norms, and that of plain torch in the same type is what ours may be. By TF32 ours may be 2.5
times that: Triton gets it by cutting off, with twice the error of rounding.
"""

from __future__ import annotations

import math
import os
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from wsimil.ops.gated_attention_pool import GateDropout, IndexMask, TopKMask, gated_attention_pool
from wsimil.ops.varlen import cu_seqlens_of

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

ROOT = Path(__file__).parents[2]
DEVICE = torch.device("cuda")
BACKEND = "triton"
NAMES = ("h", "w_v", "b_v", "w_u", "b_u", "w", "c")
KINDS = {
    "fp32": (torch.float32, "highest", 1.2, 5e-5, 1e-4),
    "tf32": (torch.float32, "high", 2.5, 3e-3, 1e-2),
    "bf16": (torch.bfloat16, "highest", 1.2, 5e-3, 1e-2),
    "fp16": (torch.float16, "highest", 1.2, 5e-3, 1e-2),
}
"""Type, precision of products, part of plain torch's error, and the most for outputs and for gradients."""
SHAPES = {
    "one instance": ((1,), 64, 64, 1),
    "one bag": ((3000,), 512, 256, 1),
    "five branches": ((3000,), 512, 128, 5),
    "eight branches": ((1000,), 384, 128, 8),
    "nothing divides": ((999,), 515, 100, 3),
    "long": ((40_000,), 512, 256, 1),
    "wide": ((1500,), 1536, 384, 2),
    "a pack": ((1000, 63, 1, 129, 2000), 512, 256, 2),
}
"""Lengths of bags, features, width of attention, branches."""
LENGTHS = (1000, 63, 1, 129)


@pytest.fixture(params=KINDS)
def kind(request):
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(KINDS[request.param][1])
    yield request.param
    torch.set_float32_matmul_precision(before)


def tensors_of(count, dim=512, length=256, branches=1, dtype=torch.bfloat16, seed=0):
    """Leaves; scores spread over about 5."""
    generator = torch.Generator(DEVICE).manual_seed(seed)

    def normal(*shape, scale=1.0):
        return torch.empty(shape, dtype=dtype, device=DEVICE).normal_(generator=generator).mul_(scale).requires_grad_()

    return {
        "h": normal(count, dim),
        "w_v": normal(length, dim, scale=dim**-0.5), "b_v": normal(length, scale=0.1),
        "w_u": normal(length, dim, scale=dim**-0.5), "b_u": normal(length, scale=0.1),
        "w": normal(branches, length, scale=6 * length**-0.5), "c": normal(branches, scale=0.1),
    }  # fmt: skip


def run(tensors, lengths, **options):
    ends = cu_seqlens_of(lengths, device=DEVICE)
    return gated_attention_pool(**tensors, cu_seqlens=ends, **{"backend": BACKEND, "entropy": True, **options})


def top_mask(k=10, seed=5):
    return TopKMask(k=k, drop=0.6, seed=torch.tensor([seed], device=DEVICE))


def cotangent(like):
    """Of numbers that all types hold, and so large that float16 does not lose what follows from them."""
    generator = torch.Generator(DEVICE).manual_seed(9)
    return torch.empty(like.shape, device=DEVICE).normal_(generator=generator).bfloat16().mul(64).to(like.dtype)


def gradients(out, tensors):
    seeds = [cotangent(out.z), cotangent(out.entropy)]
    return dict(
        zip(NAMES, torch.autograd.grad([out.z, out.entropy], [tensors[name] for name in NAMES], seeds), strict=True)
    )


def results(tensors, lengths, **options):
    """All that is written by a step, of what is asked for."""
    out = run(tensors, lengths, scores=True, **options)
    found = {name: value.detach() for name, value in out._asdict().items() if value is not None}
    return found | {f"gradient of {name}": value for name, value in gradients(out, tensors).items()}


def assert_same_bits(got, wanted):
    assert got.keys() == wanted.keys()
    for name, value in got.items():
        assert torch.equal(value, wanted[name]), name


def plain(tensors, lengths, masked):
    """z and the gradients of it by plain torch; `masked` [N, B, M], padded with -1."""
    h, w_v, b_v, w_u, b_u, w, c = (tensors[name] for name in NAMES)
    scores = F.linear(torch.tanh(F.linear(h, w_v, b_v)) * torch.sigmoid(F.linear(h, w_u, b_u)), w, c).t()
    pooled = []
    for own, bag, places in zip(scores.split(lengths, dim=1), h.split(lengths), masked, strict=True):
        out = torch.zeros(own.shape[0], own.shape[1] + 1, dtype=torch.bool, device=DEVICE)
        out.scatter_(1, places.long() % (own.shape[1] + 1), value=True)  # -1 to the surplus column
        pooled.append(own.masked_fill(out[:, :-1], -math.inf).softmax(dim=1) @ bag)
    return torch.stack(pooled)


def distance(got, wanted):
    return float((got.detach().double() - wanted.detach()).norm() / wanted.detach().norm().clamp_min(1e-30))


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_errors_are_no_larger_than_plain_torchs(kind, shape):
    dtype, _, factor, most_of_z, most_of_gradients = KINDS[kind]
    lengths, dim, length, branches = shape
    ours = tensors_of(sum(lengths), dim, length, branches, dtype)
    exact = {name: x.detach().double().requires_grad_() for name, x in ours.items()}
    masked = torch.full((len(lengths), branches, 6), -1, dtype=torch.int32, device=DEVICE)
    for bag, count in enumerate(lengths):
        for branch in range(branches if count > 6 else 0):
            masked[bag, branch] = torch.randperm(count, generator=torch.Generator().manual_seed(branch))[:6]
    z = {
        "ours": run(ours, lengths, mask=IndexMask(idx=masked)).z,
        "plain": plain(ours, lengths, masked),
        "exact": plain(exact, lengths, masked),
    }
    assert distance(z["ours"], z["exact"]) <= min(factor * distance(z["plain"], z["exact"]) + 1e-5, most_of_z)
    found = {}
    for who, value in z.items():
        leaves = list((exact if who == "exact" else ours).values())
        found[who] = dict(zip(NAMES, torch.autograd.grad(value, leaves, cotangent(value)), strict=True))
    scale = found["exact"]["h" if sum(lengths) == 1 else "w"].norm()
    for name, wanted in found["exact"].items():
        if name == "c" or sum(lengths) == 1:  # 0 but for rounding: the softmax does not change when all scores do
            assert name == "h" or (found["ours"][name].double() - wanted).abs().max() <= most_of_gradients * scale
        else:
            least = factor * distance(found["plain"][name], wanted) + 1e-5
            assert distance(found["ours"][name], wanted) <= min(least, most_of_gradients), name


def test_masks_differ_from_exact_ones_only_where_scores_nearly_tie(kind):
    dtype = KINDS[kind][0]
    tensors = tensors_of(20_000, branches=3, dtype=dtype)
    out = run(tensors, (20_000,), mask=top_mask(), scores=True, top_k=10)
    exact = {name: x.detach().double() for name, x in tensors.items()}
    h, w_v, b_v, w_u, b_u, w, c = (exact[name] for name in NAMES)
    scores = F.linear(torch.tanh(F.linear(h, w_v, b_v)) * torch.sigmoid(F.linear(h, w_u, b_u)), w, c).t()
    left = out.scores > -math.inf
    error = (out.scores.double() - scores)[left].abs().max()
    assert error < {"fp32": 1e-4, "tf32": 2e-2}.get(kind, 5e-2)
    for branch in range(3):
        chosen = out.top_idx[0, branch].long()
        assert scores[branch, chosen].min() >= scores[branch].topk(10).values.min() - 2 * error
        masked = out.masked_idx[0, branch]
        assert set(masked[masked >= 0].tolist()) <= set(chosen.tolist())


@pytest.mark.parametrize("k", [7, 64, 100])
def test_equal_scores_are_masked_as_on_a_cpu(k):
    """Scores are whole numbers, which every type and order of summing gives exactly, with many equal ones."""
    generator = torch.Generator().manual_seed(3)

    def whole(*shape):
        return torch.randint(-2, 3, shape, generator=generator).float()

    lengths = (1000, 63, 1, 129, 5000)
    h, w_v, w = whole(sum(lengths), 16), whole(16, 16), whole(3, 16)
    found = {}
    for device in ("cpu", DEVICE):
        tensors = [x.to(device) for x in (h, w_v, w)]
        found[str(device)] = gated_attention_pool(
            tensors[0], tensors[1], None, None, None, tensors[2], activation="relu", scores=True, top_k=k, bottom_k=3,
            cu_seqlens=cu_seqlens_of(lengths, device=device), bag_ids=torch.arange(5, 10, device=device),
            mask=TopKMask(k=k, drop=0.6, seed=torch.tensor([-7], device=device), stream=2),
            backend="cpu" if device == "cpu" else BACKEND,
        )  # fmt: skip
    on_cpu, on_gpu = found["cpu"], found[str(DEVICE)]
    for name in ("scores", "masked_idx", "masked_scores", "top_idx", "bottom_idx"):
        assert torch.equal(getattr(on_gpu, name).cpu(), getattr(on_cpu, name)), name


def test_dropout_is_that_of_a_cpu():
    tensors = tensors_of(500, 64, 48, 2, torch.float32)
    on_cpu = {name: x.detach().cpu() for name, x in tensors.items()}
    drop = {device: GateDropout(p=0.25, seed=torch.tensor([3], device=device)) for device in ("cpu", DEVICE)}
    got = run(tensors, (500,), dropout=drop[DEVICE], scores=True).scores
    wanted = gated_attention_pool(**on_cpu, dropout=drop["cpu"], scores=True, backend="cpu").scores
    assert distance(got.cpu(), wanted.double()) < 1e-5


@pytest.mark.parametrize("mask", [None, "few", "many"])
def test_twenty_runs_are_the_same_bits(kind, mask):
    dtype = KINDS[kind][0]
    options = {"mask": {None: None, "few": top_mask(), "many": top_mask(k=100)}[mask], "gram": True}
    tensors = tensors_of(sum(LENGTHS), branches=3, dtype=dtype)
    wanted = results(tensors, LENGTHS, **options)
    for _ in range(19):
        assert_same_bits(results(tensors, LENGTHS, **options), wanted)


@pytest.mark.parametrize("lengths", [LENGTHS, (40_000, 63, 30_000)])
def test_a_bag_alone_is_the_same_bits_as_in_a_pack(kind, lengths):
    tensors = tensors_of(sum(lengths), branches=2, dtype=KINDS[kind][0])
    pack = run(tensors, lengths, mask=top_mask(), scores=True)
    seeds = [torch.ones_like(pack.z), torch.ones_like(pack.entropy)]
    (whole,) = torch.autograd.grad([pack.z, pack.entropy], tensors["h"], seeds)
    for bag, (begin, end) in enumerate(pairwise(cu_seqlens_of(lengths).tolist())):
        alone = {**tensors, "h": tensors["h"].detach()[begin:end].clone().requires_grad_()}
        ids = torch.tensor([bag], device=DEVICE)
        got = run(alone, (end - begin,), mask=top_mask(), scores=True, bag_ids=ids)
        for name in ("z", "lse", "entropy", "masked_idx"):
            assert torch.equal(getattr(got, name)[0], getattr(pack, name)[bag]), name
        assert torch.equal(got.scores, pack.scores[:, begin:end])
        (own,) = torch.autograd.grad([got.z, got.entropy], alone["h"], [seed[:1] for seed in seeds])
        assert torch.equal(own, whole[begin:end])


@pytest.mark.parametrize("count", [1_000_000, 5_000_000])
def test_offsets_go_beyond_what_32_bits_count(count):
    """5M x 512 are more than 2**31 numbers: what lies at the end is what it is by itself."""
    if torch.cuda.mem_get_info()[0] < 6 * count * 512:
        pytest.skip(f"needs {6 * count * 512 >> 30} GiB of free memory for {count} instances")
    last = 1000
    lengths = (count - last, last)
    tensors = tensors_of(count)
    pack = run(tensors, lengths, mask=top_mask())
    (whole,) = torch.autograd.grad(pack.z, tensors["h"], torch.ones_like(pack.z))
    alone = {**tensors, "h": tensors["h"].detach()[-last:].clone().requires_grad_()}
    got = run(alone, (last,), mask=top_mask(), bag_ids=torch.tensor([1], device=DEVICE))
    (own,) = torch.autograd.grad(got.z, alone["h"], torch.ones_like(got.z))
    assert torch.equal(got.z[0], pack.z[1])
    assert torch.equal(own, whole[-last:])
    del whole, own
    out = run({name: x.detach() for name, x in tensors.items()}, (count,), scores=True)
    attention = (out.scores - out.lse[0, :, None]).exp()
    wanted = torch.zeros(512, dtype=torch.float64, device=DEVICE)
    for part, h in zip(attention[0].split(100_000), tensors["h"].detach().split(100_000), strict=True):
        wanted += part.double() @ h.double()
    assert abs(float(attention.sum()) - 1) < 1e-4
    assert distance(out.z[0, 0], wanted) < 1e-4


def test_a_captured_graph_replays_a_step_on_other_numbers():
    lengths = LENGTHS
    tensors, seed = tensors_of(sum(lengths), branches=3), torch.tensor([5], device=DEVICE)
    ends = cu_seqlens_of(lengths, device=DEVICE)

    def one_step():
        out = gated_attention_pool(
            **tensors, cu_seqlens=ends, mask=TopKMask(k=10, drop=0.6, seed=seed), entropy=True, backend=BACKEND
        )
        return [out.z, out.masked_idx, *gradients(out, tensors).values()]

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            one_step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = one_step()
    for number in (1, 2):
        with torch.no_grad():
            tensors["h"].copy_(tensors_of(sum(lengths), branches=3, seed=number)["h"])
            seed.fill_(number)
        graph.replay()
        assert all(torch.equal(got, wanted) for got, wanted in zip(captured, one_step(), strict=True))


WAYS = {
    "one bag": {"mask": {"k": 10}, "bags": 1},
    "a pack": {"mask": {"k": 10}},
    "many of the highest": {"mask": {"k": 100}},
    "many of one bag": {"mask": {"k": 100}, "bags": 1},
    "ends": {"top_k": 8, "bottom_k": 8},
    "rows": {"rows": True},
    "gram": {"gram": True},
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_the_host_never_waits(way):
    options = dict(way)
    count = sum(LENGTHS)
    tensors = tensors_of(count, branches=2)
    ends = None if options.pop("bags", 2) == 1 else cu_seqlens_of(LENGTHS, device=DEVICE)
    if mask := options.pop("mask", None):
        options["mask"] = top_mask(**mask)
    if options.get("rows"):
        options["rows"] = torch.arange(count - 1, -1, -1, dtype=torch.int32, device=DEVICE)

    def one_step():
        out = gated_attention_pool(**tensors, cu_seqlens=ends, entropy=True, backend=BACKEND, **options)
        torch.autograd.grad(out.z.sum() + out.entropy.sum(), list(tensors.values()))

    one_step()  # compiles kernels, and copies the table of counts once
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        one_step()
    finally:
        torch.cuda.set_sync_debug_mode(before)


def test_one_compiled_graph_serves_all_lengths():
    torch._dynamo.reset()

    def loss(tensors, ends, seed):
        out = gated_attention_pool(
            **tensors, cu_seqlens=ends, mask=TopKMask(k=10, drop=0.6, seed=seed), entropy=True, backend=BACKEND
        )
        return out.z.square().sum() + out.entropy.sum()

    compiled = torch.compile(loss, fullgraph=True, dynamic=True)
    seed = torch.tensor([5], device=DEVICE)
    for lengths in ((500, 130), (700, 5), (310, 80, 9), (4400, 20, 3)):
        tensors, ends = tensors_of(sum(lengths), branches=2), cu_seqlens_of(lengths, device=DEVICE)
        got, wanted = compiled(tensors, ends, seed), loss(tensors, ends, seed)
        assert torch.allclose(got, wanted, rtol=1e-5)
        leaves = list(tensors.values())[:6]
        for ours, theirs in zip(torch.autograd.grad(got, leaves), torch.autograd.grad(wanted, leaves), strict=True):
            assert distance(ours, theirs.double()) < 1e-3


@pytest.mark.filterwarnings("ignore:.*deterministic:UserWarning")
@pytest.mark.parametrize("mask", [None, "few", "many"])
def test_what_memory_held_before_shows_nowhere(kind, mask):
    options = {"mask": {None: None, "few": top_mask(), "many": top_mask(k=100)}[mask], "gram": True, "top_k": 4}
    tensors = tensors_of(sum(LENGTHS), 515, 100, 3, KINDS[kind][0])
    wanted = results(tensors, LENGTHS, **options)
    assert torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)  # fills what is not yet written with NaN
    try:
        assert torch.empty(1, device=DEVICE).isnan()
        got = results(tensors, LENGTHS, **options)
    finally:
        torch.use_deterministic_algorithms(False)
    assert_same_bits(got, wanted)


def test_nothing_of_the_size_of_the_gate_is_held():
    count = 100_000
    tensors = tensors_of(count)
    run(tensors, (count,), mask=top_mask())
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    out = run(tensors, (count,), mask=top_mask())
    torch.cuda.synchronize()
    assert torch.cuda.memory_allocated() - before < 0.01 * count * 6 * 256 * 2
    assert out.z.isfinite().all()


UNDER_THE_SANITIZER = """
import torch
from wsimil.ops.gated_attention_pool import TopKMask, gated_attention_pool
from wsimil.ops.varlen import cu_seqlens_of

torch.manual_seed(0)
for dtype in (torch.float32, torch.bfloat16):
    for k in (5, 100):
        shapes = [(194, 70), (19, 70), (19,), (19, 70), (19,), (3, 19), (3,)]
        leaves = [torch.randn(shape, device="cuda").to(dtype).requires_grad_() for shape in shapes]
        mask = TopKMask(k=k, drop=0.6, seed=torch.tensor([5], device="cuda"))
        out = gated_attention_pool(
            *leaves, cu_seqlens=cu_seqlens_of([130, 63, 1], device="cuda"), mask=mask, entropy=True, gram=True, scores=True
        )
        (out.z.sum() + out.entropy.sum() + out.gram.sum()).backward()
torch.cuda.synchronize()
"""


@pytest.mark.timeout(900)
@pytest.mark.parametrize("check", ["memcheck", "racecheck"])
def test_the_sanitizer_finds_nothing(check):
    tool = shutil.which("compute-sanitizer")
    if tool is None:
        pytest.skip("compute-sanitizer is not on PATH")
    # Each tensor is an allocation of its own, so that a step beyond its end meets no neighbor.
    environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1", "PYTHONPATH": str(ROOT)}
    command = [tool, "--tool", check, "--error-exitcode", "9", "--kernel-name", "kns=_kernel", sys.executable, "-c"]
    done = subprocess.run([*command, UNDER_THE_SANITIZER], capture_output=True, text=True, env=environment, timeout=800)
    said = done.stdout + done.stderr
    if "SUMMARY" not in said:
        pytest.skip(f"compute-sanitizer does not run here: {said[-300:]}")
    assert done.returncode == 0, said[-3000:]
