"""Every kernel as it is launched, compiled for GPUs that need not be there: nothing spills, and tensor cores do the products."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from itertools import product
from pathlib import Path

import pytest

pytestmark = pytest.mark.timeout(900)  # all kernels for two targets, on a machine with more to do

ROOT = Path(__file__).parents[2]
SHARED = {80: 163 * 1024, 90: 227 * 1024}
SOFTMAX = "softmax over bags"
CASES = {
    SOFTMAX: {},
    "bf16, one branch": {"passes": "two"},
    "bf16, one branch, one pass": {"passes": "one"},
    "bf16, five branches, masks, one pass": {"branches": 5, "mask_k": 10, "passes": "one"},
    "bf16, five branches, masks, two passes": {"branches": 5, "mask_k": 10, "passes": "two"},
    "bf16, five branches of chosen rows, one pass": {
        "branches": 5,
        "dim": 1024,
        "mask_k": 10,
        "rows": True,
        "passes": "one",
    },
    "bf16, five branches, masks": {"branches": 5, "dim": 1024, "mask_k": 10, "gram": True, "rows": True},
    "bf16, eight branches, 64 of the highest": {"branches": 8, "mask_k": 64},
    "bf16, five branches, dropout": {"branches": 5, "drop_of_65536": 16384},
    "bf16, five branches, dropout of 16 bits": {"branches": 5, "drop_of_65536": 6554},
    "bf16, gelu alone": {"gated": False, "activation": "gelu"},
    "fp32 by tf32, five branches": {"dtype": "float32", "precision": "tf32", "branches": 5},
    "fp32 by tf32, five branches, one pass": {"dtype": "float32", "precision": "tf32", "branches": 5, "passes": "one"},
    "fp32 by three tf32, one pass": {"dtype": "float32", "precision": "tf32x3", "branches": 5, "passes": "one"},
    "fp32 by three bf16, one pass": {"dtype": "float32", "precision": "bf16x3", "passes": "one"},
    "fp32 as it is, one pass": {"dtype": "float32", "precision": "ieee", "passes": "one"},
    "fp32 by three tf32": {"dtype": "float32", "precision": "tf32x3", "branches": 5},
    "fp32 by three bf16": {"dtype": "float32", "precision": "bf16x3"},
    "fp32 as it is": {"dtype": "float32", "precision": "ieee"},
}


@pytest.fixture(scope="module")
def resources(tmp_path_factory):
    """Of each kernel, case and target what the assembler says; a process of its own, as the interpreter replaces compilation."""
    pytest.importorskip("triton")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path_factory.mktemp("cache")), "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, __file__], capture_output=True, text=True, env=environment, timeout=870)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def test_no_kernel_spills_or_asks_for_more_than_a_multiprocessor_has(resources):
    assert len({record["kernel"] for record in resources}) == 17
    assert {record["case"] for record in resources} == set(CASES)
    for record in resources:
        assert record["stack"] == record["spilled"] == 0, record
        assert record["registers"] <= 255, record
        assert record["shared"] <= SHARED[record["target"]], record


def test_narrow_and_tf32_products_run_on_tensor_cores(resources):
    for kernel in ("_score_kernel", "_gate_gradient_kernel", "_h_gradient_kernel"):
        found = [record for record in resources if record["kernel"] == kernel]
        assert found
        for record in found:
            if not record["case"].startswith("fp32 as it is"):
                wanted = "wgmma" if record["target"] == 90 else "mma"
                assert record["product"] == wanted, record


def _assembler(target) -> str:
    # Triton brings two, for older and newer versions of PTX.
    from triton.backends.nvidia.compiler import get_ptxas

    return get_ptxas(target).path


def _launches(
    target, dtype="bfloat16", dim=512, length=256, branches=1, gated=True, rows=False, instances=5000, **options
):
    """Run the host code with kernels that are only taken down."""
    import torch

    from wsimil.ops.gated_attention_pool import kernels
    from wsimil.ops.gated_attention_pool.contract import PoolCotangents, PoolSpec, PoolTensors

    kind, k = getattr(torch, dtype), options.get("mask_k", 0)
    seed = torch.tensor([1])
    tensors = PoolTensors(
        h=torch.zeros(instances, dim, dtype=kind),
        w_v=torch.zeros(length, dim), b_v=torch.zeros(length),
        w_u=torch.zeros(length, dim) if gated else None, b_u=torch.zeros(length) if gated else None,
        w=torch.zeros(branches, length), c=torch.zeros(branches),
        cu_seqlens=torch.tensor([0, 3000, instances], dtype=torch.int32),
        rows=torch.arange(instances, dtype=torch.int32) if rows else None,
        mask_idx=torch.zeros(2, branches, 4, dtype=torch.int32) if k else None,
        mask_seed=seed, drop_seed=seed, bag_ids=torch.arange(2),
    )  # fmt: skip
    spec = PoolSpec(mask_counts=tuple(range(k + 1)), **options)
    seen = []
    kernels._major = lambda device: target // 10
    kernels._launch = lambda kernel, grid, *args, **more: seen.append((kernel, args, more))
    saved = kernels.forward(tensors, spec)
    gram = saved.gram if spec.gram else None
    cotangents = PoolCotangents(
        z=saved.z, lse=saved.lse, entropy=saved.entropy, gram=gram, scores=saved.scores, raw=saved.scores
    )
    kernels.backward(cotangents, tensors, saved, spec, (True,) * 7)
    return seen


def _described(kernel, args, constants):
    """Signature, constants and what a launch would find to be a multiple of 16."""
    signature, divisible = {}, {}
    for place, parameter in enumerate(kernel.params):
        if place >= len(args):
            signature[parameter.name] = "constexpr"
            continue
        value = args[place]
        if isinstance(value, int):
            signature[parameter.name] = "i32" if -(2**31) <= value < 2**31 else "i64"
            aligned = value % 16 == 0 and not parameter.do_not_specialize
        else:
            kinds = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32", "int32": "i32", "int64": "i64"}
            signature[parameter.name] = "*" + kinds[str(value.dtype).removeprefix("torch.")]
            aligned = True
        if aligned:
            divisible[(place,)] = [["tt.divisibility", 16]]
    values = {(place,): constants[p.name] for place, p in enumerate(kernel.params) if place >= len(args)}
    return signature, values, divisible


def _compiled(kernel, args, more, target):
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    signature, constants, divisible = _described(kernel, args, more)
    made = triton.compile(
        ASTSource(kernel, signature, constants, divisible),
        target=GPUTarget("cuda", target, 32),
        options={"num_warps": more["warps"], "num_stages": more.get("stages", 2), "enable_fp_fusion": True},
    )
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "kernel.ptx"
        source.write_text(made.asm["ptx"])
        architecture = re.search(r"^\.target (\w+)", made.asm["ptx"], re.MULTILINE).group(1)
        command = [
            _assembler(target),
            "-v",
            f"-arch={architecture}",
            str(source),
            "-o",
            str(source.with_suffix(".cubin")),
        ]
        said = subprocess.run(command, capture_output=True, text=True, check=True)
    report = said.stdout + said.stderr
    stack, stores, loads = map(
        int, re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", report).groups()
    )
    multiplied = [name for name in ("wgmma", "mma.sync") if name in made.asm["ptx"]]
    return {
        "registers": int(re.search(r"Used (\d+) registers", report).group(1)),
        "stack": stack,
        "spilled": stores + loads,
        "shared": made.metadata.shared,
        "product": multiplied[0].removesuffix(".sync") if multiplied else "none",
    }


def _softmax_launches():
    import torch

    from wsimil.ops.segment_softmax import kernels

    x, ends = torch.zeros(5000, 5), torch.tensor([0, 3000, 5000], dtype=torch.int32)
    more = {"BLOCK": kernels.BLOCK, "warps": 8}
    return [(kernels._softmax_kernel, (x, x, ends, 5), more), (kernels._gradient_kernel, (x, x, x, ends, 5), more)]


def main():
    """Print records of all different launches."""
    records, seen = [], set()
    for target, (case, options) in product(SHARED, CASES.items()):
        launches = _launches(target, **options) if case != SOFTMAX else _softmax_launches()
        for kernel, args, more in launches:
            described = repr((target, kernel.__name__, _described(kernel, args, more), more))
            if described not in seen:
                seen.add(described)
                found = _compiled(kernel, args, more, target)
                records.append({"kernel": kernel.__name__, "case": case, "target": target, **found})
    sys.stdout.write(json.dumps(records))


if __name__ == "__main__":
    main()
