"""The operations stand alone."""

from __future__ import annotations

import subprocess
import sys


def test_operations_need_torch_and_nothing_else():
    code = """
import sys
for name in ("jaxtyping", "pydantic", "safetensors", "wsimil.config"):
    sys.modules[name] = None
from wsimil.ops import gated_attention_pool, packed_linear, segment_max, segment_softmax, segment_sum, varlen
others = [name for name, module in sys.modules.items() if module and name.startswith("wsimil.")]
assert all(name.startswith("wsimil.ops") for name in others), others
"""
    subprocess.run([sys.executable, "-c", code], check=True)
