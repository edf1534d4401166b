"""Builds the viewer's page when wsimil is installed: `npm ci` and `npm run build` in its web folder, once for each content.

What comes out lies in wsimil/export/viewer/static, which git ignores and the wheel holds. Without npm, or where it fails, the
installation goes on; `wsimil view` then says what to do, with the reason that is left in static/not_built.txt.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

VIEWER = Path("wsimil/export/viewer")
BUILT = ("viewer.js", "viewer.css", "LICENSES.txt")
STAMP, REASON = "built_from.txt", "not_built.txt"
_SOURCES = ("package.json", "package-lock.json", "tsconfig.json", "build.mjs")
_LIMIT_S = 600


class ViewerBuildHook(BuildHookInterface):  # type: ignore[type-arg]  # its config has no type of its own
    """Runs before every wheel, editable ones too, and before a source distribution."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Build what is not there yet; nothing that goes wrong here ends the installation."""
        try:
            self.app.display_info(build_viewer(Path(self.root) / VIEWER))
        except OSError as error:  # such as a checkout that may only be read
            self.app.display_warning(f"viewer: not built, {error}; everything else is installed")


def build_viewer(viewer: Path) -> str:
    """Bring `viewer`/static up to date with `viewer`/web; what was done, in words. Raises OSError where it cannot be written."""
    web, static = viewer / "web", viewer / "static"
    if not (web / "package.json").is_file():
        return "viewer: no sources here, so nothing is built"
    content = digest(web)
    if _stands(static, content):
        return "viewer: built already"
    static.mkdir(exist_ok=True)
    for name in (*BUILT, STAMP, REASON):
        (static / name).unlink(missing_ok=True)
    reason = _run_npm(web)
    missing = [name for name in BUILT if not (static / name).is_file()]
    if reason is None and missing:
        reason = f"npm run build left no {' and no '.join(missing)}"
    if reason is not None:
        for name in BUILT:  # what a broken build left would be served
            (static / name).unlink(missing_ok=True)
        (static / REASON).write_text(reason + "\n", encoding="utf-8")
        return f"viewer: not built, {reason}; everything else is installed"
    vouch(viewer)
    return "viewer: built"


def vouch(viewer: Path) -> None:
    """Say that `viewer`/static was built of `viewer`/web as it is now; for those who ran npm elsewhere, as an image does."""
    (viewer / "static" / STAMP).write_text(digest(viewer / "web") + "\n", encoding="utf-8")


def digest(web: Path) -> str:
    """SHA-256 over names and contents of all that the page is made of, 64 hex digits."""
    files = [web / name for name in _SOURCES if (web / name).is_file()]
    files += sorted(path for path in (web / "src").rglob("*") if path.is_file())
    found = hashlib.sha256()
    for path in files:
        data = path.read_bytes()
        found.update(f"{path.relative_to(web).as_posix()}\0{len(data)}\0".encode())
        found.update(data)
    return found.hexdigest()


def _stands(static: Path, content: str) -> bool:
    try:
        made_from = (static / STAMP).read_text(encoding="utf-8").strip()
    except OSError:
        return False
    return made_from == content and all((static / name).is_file() for name in BUILT)


def _run_npm(web: Path) -> str | None:
    """Why it did not go, None where it did."""
    npm = shutil.which("npm")
    if npm is None:
        return "npm was not found"
    quiet = ("--no-audit", "--no-fund", "--no-update-notifier", "--fetch-retries=1", "--fetch-timeout=60000")
    for words in (("ci", *quiet), ("run", "build")):
        try:
            done = subprocess.run(  # noqa: S603 - our own words
                [npm, *words], cwd=web, env={**os.environ, "CI": "1"}, timeout=_LIMIT_S, check=False,
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return f"npm {words[0]} took longer than {_LIMIT_S} s"
        except OSError as error:
            return f"npm did not start ({error.strerror or 'unknown reason'})"
        if done.returncode:
            print(done.stdout.decode("utf-8", "replace"))  # noqa: T201  # pip -v shows it
            return f"npm {' '.join(words[:1] if words[0] == 'ci' else words)} ended with exit code {done.returncode}"
    return None
