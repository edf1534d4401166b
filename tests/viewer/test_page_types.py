"""The page's own code holds to its types."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

WEB = Path(__file__).resolve().parents[2] / "wsimil" / "export" / "viewer" / "web"


def test_typescript_finds_no_fault_in_the_page() -> None:
    npm = shutil.which("npm")
    if npm is None or not (WEB / "node_modules" / ".bin" / "tsc").exists():
        pytest.skip("needs npm, and the packages that the page is built with")
    done = subprocess.run([npm, "run", "check"], cwd=WEB, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout


def test_the_lock_of_packages_names_no_host() -> None:
    text = (WEB / "package-lock.json").read_text(encoding="utf-8")
    assert "://" not in text.replace("https://opencollective.com/openseadragon", "")  # whom its author asks to support
    assert '"resolved"' not in text
