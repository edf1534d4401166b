"""Installing builds the page once, and goes on where it cannot."""

from __future__ import annotations

import importlib.util
import json
import shutil
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

pytest.importorskip("hatchling", reason="needs hatchling, which installing wsimil brings for itself alone")

ROOT = Path(__file__).resolve().parents[2]
BUILD = """
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
mkdirSync("../static", { recursive: true });
for (const name of ["viewer.js", "viewer.css", "LICENSES.txt"]) writeFileSync(`../static/${name}`, readFileSync("src/main.ts"));
"""

needs_npm = pytest.mark.skipif(shutil.which("npm") is None, reason="needs npm")


@pytest.fixture(scope="module")
def hook() -> ModuleType:
    spec = importlib.util.spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def viewer(tmp_path: Path) -> Path:
    """The smallest web folder that builds: no packages, so no network."""
    return write_web(tmp_path / "viewer")


def write_web(viewer: Path) -> Path:
    web = viewer / "web"
    (web / "src").mkdir(parents=True)
    (web / "src" / "main.ts").write_text("first")
    (web / "build.mjs").write_text(BUILD)
    facts = {"name": "x", "version": "0.0.0", "private": True}
    (web / "package.json").write_text(json.dumps({**facts, "scripts": {"build": "node build.mjs"}}))
    lock = {**facts, "lockfileVersion": 3, "requires": True, "packages": {"": {"name": "x", "version": "0.0.0"}}}
    (web / "package-lock.json").write_text(json.dumps(lock))
    return viewer


@needs_npm
def test_it_builds_once_for_each_content(hook: ModuleType, viewer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert hook.build_viewer(viewer) == "viewer: built"
    assert (viewer / "static" / "viewer.js").read_text() == "first"
    with monkeypatch.context() as without_npm:
        without_npm.setenv("PATH", "/nowhere")
        assert hook.build_viewer(viewer) == "viewer: built already"
    (viewer / "web" / "src" / "main.ts").write_text("second")
    assert hook.build_viewer(viewer) == "viewer: built"
    assert (viewer / "static" / "viewer.css").read_text() == "second"


def test_without_npm_the_installation_goes_on_and_the_reason_stays(
    hook: ModuleType, viewer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert "npm was not found" in hook.build_viewer(viewer)
    assert (viewer / "static" / "not_built.txt").read_text() == "npm was not found\n"


def test_a_checkout_that_cannot_be_written_is_installed_without_the_page(hook: ModuleType, tmp_path: Path) -> None:
    from hatchling.bridge.app import Application

    viewer = write_web(tmp_path / "wsimil" / "export" / "viewer")
    (viewer / "static").write_text("in the way")
    made = hook.ViewerBuildHook(str(tmp_path), {}, None, None, str(tmp_path), "wheel", Application())
    made.initialize("standard", {})
    assert (viewer / "static").read_text() == "in the way"


@needs_npm
def test_a_build_that_fails_leaves_the_reason_and_no_half_page(hook: ModuleType, viewer: Path) -> None:
    hook.build_viewer(viewer)
    (viewer / "web" / "build.mjs").write_text(BUILD + "process.exit(3);")
    assert "npm run build ended with exit code 3" in hook.build_viewer(viewer)
    assert sorted(path.name for path in (viewer / "static").iterdir()) == ["not_built.txt"]
    (viewer / "web" / "build.mjs").write_text("")
    assert "left no viewer.js" in hook.build_viewer(viewer)
    (viewer / "web" / "package-lock.json").unlink()
    assert "npm ci ended with exit code 1" in hook.build_viewer(viewer)


@needs_npm
def test_a_wheel_holds_the_page_and_not_what_it_is_made_of(tmp_path: Path) -> None:
    from hatchling.builders.wheel import WheelBuilder

    root = tmp_path / "root"
    root.mkdir()
    for name in ("pyproject.toml", "hatch_build.py", "README.md", "LICENSE", ".gitignore"):
        shutil.copy(ROOT / name, root)
    for name in ("__init__.py", "errors.py", "export/viewer/built.py", "export/viewer/templates/viewer.html"):
        (root / "wsimil" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / "wsimil" / name, root / "wsimil" / name)
    write_web(root / "wsimil" / "export" / "viewer")
    (wheel,) = WheelBuilder(str(root)).build(directory=str(tmp_path / "dist"), versions=["standard"])
    assert (root / "wsimil" / "export" / "viewer" / "static" / "viewer.js").is_file()
    names = set(zipfile.ZipFile(wheel).namelist())
    assert not [name for name in names if "/web/" in name or "node_modules" in name]
    wanted = {f"wsimil/export/viewer/static/{name}" for name in ("viewer.js", "viewer.css", "LICENSES.txt")}
    assert wanted <= names
    assert "wsimil/export/viewer/templates/viewer.html" in names


def test_the_locked_packages_name_no_registry() -> None:
    lock = ROOT / "wsimil" / "export" / "viewer" / "web" / "package-lock.json"
    assert "resolved" not in lock.read_text()
    assert "http" not in "".join(
        line for line in lock.read_text().splitlines() if "funding" not in line and '"url"' not in line
    )
