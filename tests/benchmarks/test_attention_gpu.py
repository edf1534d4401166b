"""The GPU benchmark of the attention op, which runs all but its timing on a CPU."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks" / "attention_gpu.py"


def run(*arguments, **environment):
    """Where torch and triton are all there is beside the project."""
    code = f"""
import runpy, sys
for name in ("jaxtyping", "pydantic", "pandas", "scipy", "sklearn", "h5py", "zarr", "rich", "yaml", "wsimil.config"):
    sys.modules[name] = None
sys.argv = {["attention_gpu.py", *map(str, arguments)]!r}
sys.path.insert(0, {str(SCRIPT.parent)!r})
runpy.run_path({str(SCRIPT)!r}, run_name="__main__")
"""
    inherited = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=870,
        env={**inherited, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **environment},
    )  # fmt: skip


@pytest.mark.timeout(900)
def test_a_dry_run_does_all_but_timing_and_shows_no_figure(tmp_path):
    pytest.importorskip("triton")
    done = run("--dry-run", "--out", tmp_path / "figures.json", TRITON_INTERPRET="1")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    *tables, last = done.stdout.splitlines()
    assert re.fullmatch(r"dry run: \d\d cases ran; nothing was measured", last)
    assert not list(tmp_path.iterdir())
    for line in tables:
        name, figures = line[:24], line[24:].split()
        assert set(figures) <= {"-"} or name.startswith(
            ("us ", "pool ", "acmil ", "mhim ", "ours two, kernel", "ours one, kernel")
        )
        assert len(line) <= 80


def test_without_a_gpu_it_says_what_it_needs():
    pytest.importorskip("triton")
    done = run()
    assert done.returncode == 2
    assert "CUDA device of compute capability 8.0" in done.stdout
