"""The Triton kernels in Triton's interpreter, by the tests of the op: no GPU is needed, and none is used."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

OP = Path(__file__).with_name("test_gated_attention_pool.py")


@pytest.mark.timeout(900)
def test_kernels_pass_the_tests_of_the_op_in_the_interpreter():
    """In a process of its own, as triton looks once, when a kernel is defined, whether it is to be interpreted.

    The interpreter computes by NumPy, which warns where kernels make NaN on purpose, and of how Triton 3.6 converts.
    """
    pytest.importorskip("triton")
    environment = {**os.environ, "TRITON_INTERPRET": "1", "WSIMIL_TEST_BACKEND": "triton", "OMP_NUM_THREADS": "1"}
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "--timeout=600",
        "-W",
        "ignore::RuntimeWarning",
        "-W",
        "ignore:Conversion of an array with ndim > 0:DeprecationWarning",
        str(OP),
    ]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=OP.parents[2])
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None
    assert int(passed[1]) > 100
