"""Softmax over bags by either backend against torch's; the same file runs in Triton's interpreter."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from wsimil.ops import segment_softmax as module
from wsimil.ops.dispatch import ENVIRONMENT
from wsimil.ops.segment_softmax import segment_softmax
from wsimil.ops.varlen import cu_seqlens_of

pytestmark = pytest.mark.long

LENGTHS = (63, 1, 200, 31)
KERNELS = os.environ.get("WSIMIL_TEST_BACKEND") == "triton"
by_kernels = pytest.mark.skipif(not KERNELS, reason="of the Triton kernels, which another test runs in the interpreter")


@pytest.fixture(autouse=True)
def _backend(monkeypatch):
    if KERNELS:
        from wsimil.ops.segment_softmax import kernels

        monkeypatch.setenv(ENVIRONMENT, "triton")
        monkeypatch.setattr(kernels, "BLOCK", 64)


def scores_of(heads=3, lengths=LENGTHS):
    generator = torch.Generator().manual_seed(0)
    return 5 * torch.randn(sum(lengths), heads, generator=generator)


def by_torch(scores, lengths=LENGTHS):
    return torch.cat([part.softmax(dim=0) for part in torch.split(scores, lengths)])


def test_weights_and_gradients_are_those_of_torch():
    ours, theirs = (scores_of().requires_grad_() for _ in range(2))
    seed = torch.randn(len(ours), 3, generator=torch.Generator().manual_seed(1))
    got, wanted = segment_softmax(ours, cu_seqlens_of(LENGTHS)), by_torch(theirs.double())
    (mine,), (their,) = torch.autograd.grad(got, ours, seed), torch.autograd.grad(wanted, theirs, seed.double())
    for found, exact in ((got, wanted), (mine, their)):
        assert (found.double() - exact.double()).norm() < 2e-6 * exact.double().norm()


def test_a_bag_alone_is_the_same_bits_as_in_a_pack():
    scores, ends = scores_of(), [0, *cu_seqlens_of(LENGTHS).tolist()[1:]]
    pack = segment_softmax(scores, cu_seqlens_of(LENGTHS))
    for begin, end in pairwise(ends):
        alone = segment_softmax(scores[begin:end].clone(), cu_seqlens_of([end - begin]))
        assert torch.equal(alone, pack[begin:end])


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("row", [64, 130, 263])
def test_what_is_not_finite_spoils_its_bag_and_head_alone(bad, row):
    scores = scores_of()
    good = segment_softmax(scores, cu_seqlens_of(LENGTHS))
    scores[row, 1] = bad
    got = segment_softmax(scores, cu_seqlens_of(LENGTHS))
    spoiled = torch.zeros_like(got, dtype=torch.bool)
    spoiled[64:264, 1] = True
    assert got[spoiled].isnan().any()
    assert not (got[spoiled] > 0).all()
    assert torch.equal(got[~spoiled], good[~spoiled])


def test_minus_infinity_weighs_nothing_and_any_finite_score_is_safe():
    scores = torch.tensor([[1e30], [-math.inf], [1e30], [-1e30]])
    assert segment_softmax(scores, cu_seqlens_of([4])).flatten().tolist() == [0.5, 0.0, 0.5, 0.0]


@by_kernels
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # torch's own doing
def test_torch_finds_no_fault_with_the_operation():
    for scores in (scores_of(), scores_of().requires_grad_()):
        torch.library.opcheck(module._softmax, (scores, cu_seqlens_of(LENGTHS)))


@by_kernels
def test_one_compiled_graph_serves_all_lengths():
    import torch._dynamo.testing

    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(segment_softmax, fullgraph=True, backend=counter, dynamic=True)
    for lengths in ((50, 13), (70, 5), (31, 8, 9)):
        scores = scores_of(7, lengths).requires_grad_()
        got = compiled(scores, cu_seqlens_of(lengths))
        torch.testing.assert_close(got, by_torch(scores, lengths))
        got.square().sum().backward()
    assert counter.frame_count == 1


@pytest.mark.skipif(KERNELS, reason="this is that run")
@pytest.mark.timeout(300)
def test_kernels_pass_these_tests_in_the_interpreter():
    """In a process of its own, as triton looks once, when a kernel is defined, whether it is to be interpreted."""
    pytest.importorskip("triton")
    environment = {**os.environ, "TRITON_INTERPRET": "1", "WSIMIL_TEST_BACKEND": "triton", "OMP_NUM_THREADS": "1"}
    ignored = ["-W", "ignore::RuntimeWarning", "-W", "ignore:Conversion of an array with ndim > 0:DeprecationWarning"]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *ignored, __file__]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert "11 passed" in done.stdout
