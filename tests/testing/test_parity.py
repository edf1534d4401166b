"""The replay of recorded steps: all that are there pass, and none passes that should not."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from wsimil.testing.parity.__main__ import main
from wsimil.testing.parity.replay import replay_file

GOLDEN = Path(__file__).resolve().parents[2].parent / "shared" / "golden"
FILES = sorted(GOLDEN.rglob("*.npz"))
PARTS = ("masks", "ema", "scoring")  # of a method, without a step
STEP = "acmil/ga_train_t5k10d6_N37.npz"


@pytest.mark.shared
@pytest.mark.parametrize("path", FILES or [None], ids=lambda path: path and f"{path.parent.name}/{path.stem}")
def test_a_recorded_step_of_the_official_code_is_replayed(shared_dir, path):
    report = replay_file(path)
    assert report.failures == []
    assert report.errors
    for quantity in () if path.stem.startswith(PARTS) else ("logits", "gradient"):
        found = [error for name, error in report.errors.items() if name.startswith(quantity)]
        assert found
        assert max(found) <= 1e-5


@pytest.fixture
def altered(shared_dir, tmp_path):
    def write(change, name=STEP):
        with np.load(shared_dir / "golden" / name) as file:
            arrays = {key: file[key] for key in file.files}
        change(arrays)
        np.savez(tmp_path / "altered.npz", **arrays)
        return replay_file(tmp_path / "altered.npz").failures

    return write


def test_the_unaltered_file_passes_after_a_round_trip(altered):
    assert altered(lambda arrays: None) == []


@pytest.mark.parametrize(
    "key",
    [
        "out.logits",
        "out.sub_logits",
        "out.loss",
        "out.loss.diff",
        "out.attn",
        "grad.x",
        "grad.state.attention.attention_V.0.weight",
        "f64.grad.x",
        "state.dimreduction.fc1.weight",
        "in.x",
    ],
)
def test_a_thousandth_on_any_quantity_fails(altered, key):
    def change(arrays):
        arrays[key] = (arrays[key] * 1.001).astype(arrays[key].dtype)

    assert altered(change)


def test_recorded_float32_that_is_far_from_its_own_float64_widens_the_bound_by_as_much(altered):
    key, name = "grad.state.b_classifier.q.bias", "dsmil/lin_passv_C2_N37.npz"

    def change(arrays, *keys):
        for one in keys:
            arrays[one] = arrays[one] + arrays[one].dtype.type(1e-8)  # 128 of them: a norm of 1.1e-7

    assert altered(lambda arrays: change(arrays, key), name) == []
    both = altered(lambda arrays: change(arrays, key, f"f64.{key}"), name)
    assert any("query.bias: off by" in line for line in both)


def test_other_draws_fail(altered):
    def change(arrays):
        arrays["rng.rand.00"] = arrays["rng.rand.00"][:, ::-1].copy()

    assert any("logits" in line for line in altered(change))


def test_draws_that_are_missing_or_left_over_fail(altered):
    def fewer(arrays):
        arrays["rng.order"] = np.array("[]")

    def more(arrays):
        arrays["rng.rand.01"] = arrays["rng.rand.00"]
        arrays["rng.order"] = np.array(json.dumps(["rand.00", "rand.01"]))

    assert "no rand is left" in altered(fewer)[0]
    assert "ours did not: {'rand': 1}" in altered(more)[0]


def test_an_expectation_that_no_replay_compares_fails(altered):
    def change(arrays):
        arrays["out.something_new"] = np.zeros(3, np.float32)

    assert altered(change) == ["nothing compared: out.something_new"]


def test_an_unknown_source_and_a_foreign_file_fail(altered, tmp_path):
    def change(arrays):
        arrays["config"] = np.array(json.dumps({"repo": "somebody/else"}))

    assert "no replay is known for 'somebody/else'" in altered(change)[0]
    (tmp_path / "text.npz").write_text("no zip", encoding="ascii")
    assert "is not a recording" in replay_file(tmp_path / "text.npz").failures[0]


def test_the_command_prints_a_line_a_file_and_says_by_its_exit_code(shared_dir, tmp_path, capsys):
    assert main([str(shared_dir / "golden" / "pool")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5
    assert lines[0].startswith(f"{shared_dir / 'golden/pool/max_N2.npz'}: ok: logits ")
    (tmp_path / "bad.npz").write_bytes(b"")
    assert main([str(tmp_path), str(shared_dir / "golden/pool/max_N2.npz")]) == 1
    assert "2 files, 1 failed" in capsys.readouterr().out
    assert main([str(tmp_path / "empty")]) == 1


def test_the_module_runs_as_a_command():
    done = subprocess.run(
        [sys.executable, "-m", "wsimil.testing.parity", "--help"], capture_output=True, text=True, check=True
    )
    assert "Exits 1 if anything differs" in done.stdout
