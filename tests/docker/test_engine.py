"""The Dockerfile is built by a real engine, and what comes out is run.

Buildah needs no daemon. Debian stands in for the bases, as no registry of images may be at hand; it has the same libc and Python.
The dependencies are not installed again: the image gets those of this Python mounted, so all steps run but one download. The
others ask the network for packages of Debian, PyPI and npm, so these tests run only where WSIMIL_BUILD_IMAGES=1 asks for them.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from wsimil import __version__

from .conftest import ROOT, SOMEONE

NEEDED = ("buildah", "mmdebstrap", "npm", "node")
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
Buildah = Callable[..., str]

pytestmark = [
    pytest.mark.skipif(
        os.environ.get("WSIMIL_BUILD_IMAGES") != "1",
        reason="set WSIMIL_BUILD_IMAGES=1 to build an image, with the network",
    ),
    pytest.mark.skipif(
        os.geteuid() != 0 or not all(map(shutil.which, NEEDED)),
        reason=f"needs root and {', '.join(NEEDED)} to build an image",
    ),
    pytest.mark.skipif(
        sys.version_info[:2] != (3, 11), reason="the image has Python 3.11, and borrows the packages of this one"
    ),
    pytest.mark.timeout(600),
]


@pytest.fixture(scope="module")
def buildah(open_folder: Path) -> Iterator[Buildah]:
    store = [f"--root={open_folder / 'store'}", f"--runroot={open_folder / 'running'}"]

    def run(*words: str, cwd: Path | None = None) -> str:
        done = subprocess.run(
            ["buildah", *store, *words], cwd=cwd, capture_output=True, text=True, stdin=subprocess.DEVNULL
        )
        assert done.returncode == 0, f"buildah {' '.join(words)}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        return done.stdout.strip()

    yield run
    run("rm", "--all")
    run("rmi", "--all", "--force")


@pytest.fixture(scope="module")
def base(buildah: Buildah, open_folder: Path) -> str:
    """An image of Debian with Python and this machine's Node.js; skips where Debian cannot be had."""
    packages = "--include=python3,python3-venv,python3-pip,ca-certificates"
    archive = open_folder / "base.tar"
    done = subprocess.run(
        ["mmdebstrap", "--quiet", "--variant=minbase", packages, "bookworm", str(archive)],
        capture_output=True,
        text=True,
    )
    if done.returncode:
        pytest.skip(f"no Debian to stand in for the base: {done.stderr.strip().splitlines()[-1]}")
    container = buildah("from", "scratch")
    buildah("add", "--quiet", container, str(archive), "/")
    archive.unlink()
    npm = Path(str(shutil.which("npm"))).resolve().parents[1]
    buildah("copy", "--quiet", container, str(Path(str(shutil.which("node"))).resolve()), "/usr/bin/node")
    buildah("copy", "--quiet", container, str(npm), "/usr/lib/npm")
    buildah("run", "--isolation=chroot", container, "--", "ln", "-s", "/usr/lib/npm/bin/npm-cli.js", "/usr/bin/npm")
    if CERTIFICATES.is_file():  # those of this machine's own authority too, should there be one
        buildah("copy", "--quiet", container, str(CERTIFICATES), str(CERTIFICATES))
        buildah("config", f"--env=PIP_CERT={CERTIFICATES}", f"--env=NODE_EXTRA_CA_CERTS={CERTIFICATES}", container)
    buildah("commit", "--quiet", "--rm", container, "localhost/base")
    return "localhost/base"


@pytest.fixture(scope="module")
def image(buildah: Buildah, base: str, context: Path, open_folder: Path) -> str:
    """The image for CPUs, less its dependencies."""
    folder = open_folder / "engine"
    shutil.copytree(context, folder, ignore=lambda _, names: {"static"} & set(names))
    project = (folder / "pyproject.toml").read_text()
    head, _, tail = project.partition("\ndependencies = [\n")
    (folder / "pyproject.toml").write_text(f"{head}\ndependencies = []\n{tail.partition(']' + chr(10))[2]}")
    buildah(
        "build", "--isolation=chroot", "--format=docker", "--pull-never", "--target=cpu", "--tag=localhost/wsimil",
        f"--build-arg=PYTHON={base}", f"--build-arg=NODE={base}", "--build-arg=TORCH_INDEX=", "--build-arg=VERSION=7.8",
        f"--file={ROOT / 'docker' / 'Dockerfile'}", ".", cwd=folder,
    )  # fmt: skip
    return "localhost/wsimil"


@pytest.fixture(scope="module")
def run(buildah: Buildah, image: str, open_folder: Path) -> Callable[..., str]:
    """Runs a command as Slurm's --container-image does: no entry point, a user id that the image does not know."""
    container = buildah("from", "--pull-never", image)
    (open_folder / "dependencies.pth").write_text("/dependencies\n")
    data = open_folder / "mounted"
    data.mkdir()
    os.chown(data, SOMEONE, SOMEONE)
    mounts = {
        sysconfig.get_path("purelib"): "/dependencies:ro",
        str(open_folder / "dependencies.pth"): "/opt/wsimil/lib/python3.11/site-packages/dependencies.pth:ro",
        str(data): "/data",
    }
    volumes = [f"--volume={source}:{target}" for source, target in mounts.items()]
    kept = [f"--env={key}={value}" for key, value in os.environ.items() if key.startswith("OPENBLAS_")]

    def command(*words: str) -> str:
        return buildah(
            "run", "--isolation=chroot", f"--user={SOMEONE}:{SOMEONE}", *volumes, *kept, container, "--", *words
        )

    return command


def test_the_image_says_how_to_run_it(buildah: Buildah, image: str) -> None:
    config = json.loads(buildah("inspect", "--type=image", image))["Docker"]["config"]
    assert config["User"] == "10001:0"
    assert config["Entrypoint"] == ["tini", "--", "wsimil"]
    assert config["Healthcheck"]["Test"] == ["CMD", "wsimil-healthy"]
    assert config["WorkingDir"] == "/data"
    assert config["Labels"]["org.opencontainers.image.version"] == "7.8"


def test_a_user_without_a_name_extracts_in_the_image(
    run: Callable[..., str], open_folder: Path, make_slide: Callable[..., Path]
) -> None:
    assert run("tini", "--", "wsimil", "--version").split()[-1] == __version__
    assert run("wsimil-healthy") == ""
    make_slide(open_folder / "mounted" / "slides" / "case.tif")
    run("wsimil", "extract", "slides", "-o", "features", "--device", "cpu")
    assert [path.name for path in (open_folder / "mounted" / "features").rglob("case*.h5")] == ["case.h5"]


def test_the_image_holds_the_page_and_no_test(run: Callable[..., str]) -> None:
    found = run("find", "/opt/wsimil", "-type", "f", "-not", "-name", "*.pyc").splitlines()
    assert sum(name.endswith("/wsimil/export/viewer/static/viewer.js") for name in found) == 1
    assert not [name for name in found if "/tests/" in name or "node_modules" in name]
    assert not {"src", "wheel", "page"} & set(run("ls", "/").split())
