"""The steps of the images, run in a clean folder: what they install, and what they refuse."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from wsimil import __version__

from .conftest import ROOT, SOMEONE

STATIC = Path("wsimil/export/viewer/static")
Install = Callable[..., subprocess.CompletedProcess[str]]


def step(name: str, *words: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a script of docker/ in `folder`, with this Python as `python3` and no package index but those given."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("PIP_", "PYTHON"))}
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return subprocess.run(
        [str(ROOT / "docker" / name), *words], cwd=folder, capture_output=True, text=True,
        env={**kept, "PATH": path, "PIP_CONFIG_FILE": os.devnull, "PIP_DISABLE_PIP_VERSION_CHECK": "1", **environment},
    )  # fmt: skip


def write_wheel(index: Path, name: str, version: str, *needs: str) -> None:
    """A package of nothing but its name, in a package index of files."""
    folder = index / name
    folder.mkdir(parents=True, exist_ok=True)
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{name}.py", "")
        facts = [f"Name: {name}", f"Version: {version}", *(f"Requires-Dist: {need}" for need in needs)]
        wheel.writestr(f"{info}/METADATA", "\n".join(["Metadata-Version: 2.1", *facts, ""]))
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{info}/RECORD", "")
    links = "".join(f'<a href="{path.name}">{path.name}</a>' for path in sorted(folder.glob("*.whl")))
    (folder / "index.html").write_text(f"<!DOCTYPE html><html><body>{links}</body></html>")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A small project with a package index of files, `usual`, and one that holds torch for CPUs."""
    for name, version, *needs in (
        ("torch", "2.0", "cuda"), ("torchvision", "0.2", "torch"), ("cuda", "13"),
        ("reader", "1"), ("reader", "2"), ("tracker", "7"),
    ):  # fmt: skip
        write_wheel(tmp_path / "usual", name, version, *needs)
    write_wheel(tmp_path / "cpu", "torch", "2.0+cpu", "reader")
    write_wheel(tmp_path / "cpu", "torchvision", "0.2+cpu", "torch")
    write_wheel(tmp_path / "cpu", "reader", "1.0.0+cpu")
    (tmp_path / "pyproject.toml").write_text(
        '[project]\ndependencies = ["torch", "torchvision", "reader"]\n'
        'optional-dependencies = { track = ["tracker"], more = ["reader"] }\n'
    )
    (tmp_path / "constraints.txt").write_text("cuda==13\nreader==1\ntorch==2.0\ntorchvision==0.2\n")
    return tmp_path


@pytest.fixture
def install(project: Path) -> Install:
    usual = (project / "usual").as_uri()

    def run(**environment: str) -> subprocess.CompletedProcess[str]:
        return step("dependencies.sh", str(project / "env"), folder=project, PIP_INDEX_URL=usual, **environment)

    return run


def installed(project: Path) -> list[str]:
    return (project / "env" / "installed.txt").read_text().split()


def test_what_is_installed_has_the_pinned_versions(project: Path, install: Install) -> None:
    done = install()
    assert done.returncode == 0, done.stderr
    assert installed(project) == ["cuda==13", "reader==1", "torch==2.0", "torchvision==0.2"]


def test_torch_for_cpus_stays_and_its_index_has_no_say_in_the_rest(project: Path, install: Install) -> None:
    done = install(TORCH_INDEX=(project / "cpu").as_uri())
    assert done.returncode == 0, done.stderr
    assert installed(project) == ["reader==1", "torch==2.0+cpu", "torchvision==0.2+cpu"]


def test_a_version_that_is_not_pinned_ends_the_build(project: Path, install: Install) -> None:
    (project / "constraints.txt").write_text("reader==1\ntorch==2.0\ntorchvision==0.2\n")
    done = install()
    assert done.returncode == 1
    assert "constraints.txt: holds no version of cuda" in done.stderr


def test_extras_come_with_it(project: Path, install: Install) -> None:
    done = install(EXTRAS="track,more")
    assert done.returncode == 0, done.stderr
    assert "tracker==7" in installed(project)


def test_an_extra_that_does_not_exist_is_named_beside_those_that_do(install: Install) -> None:
    done = install(EXTRAS="tracks")
    assert done.returncode == 1
    assert "tracks is not an extra of wsimil; those are track, more" in done.stderr


@pytest.fixture(scope="module")
def environment(context: Path, open_folder: Path) -> Path:
    """The environment that the images hold, made of the clean folder; its dependencies are those of this Python."""
    pytest.importorskip("hatchling", reason="needs hatchling to build a wheel")
    spec = importlib.util.spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
    assert spec is not None
    assert spec.loader is not None
    hook = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hook)
    stamp = ROOT / STATIC / hook.STAMP
    if not stamp.is_file() or stamp.read_text().strip() != hook.digest(ROOT / STATIC.parent / "web"):
        pytest.skip("the viewer's page is not built of these sources; installing wsimil where npm is builds it")
    (context / STATIC).mkdir()
    for name in hook.BUILT:  # what the stage `page` hands over: without a stamp
        shutil.copy(ROOT / STATIC / name, context / STATIC)
    made = open_folder / "wsimil"
    done = step("application.sh", str(made), folder=context, BUILD_PYTHON=sys.executable)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "viewer: built already" in done.stdout + done.stderr
    site = next((made / "lib").glob("python*/site-packages"))
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    (made / "command").mkdir()
    for name, command in (("entrypoint.sh", "wsimil"), ("healthy.sh", "wsimil-healthy")):
        shutil.copy(context / "docker" / name, made / "command" / command)
    for path in [made, *made.rglob("*")]:
        if not path.is_symlink():
            path.chmod(path.stat().st_mode & ~0o222)
    return made


def test_an_environment_holds_the_page_and_no_test(environment: Path) -> None:
    site = next((environment / "lib").glob("python*/site-packages"))
    assert sorted(path.name for path in site.iterdir()) == [
        "dependencies.pth",
        "wsimil",
        f"wsimil-{__version__}.dist-info",
    ]
    for name in ("viewer.js", "viewer.css", "LICENSES.txt"):
        assert (site / STATIC / name).stat().st_size > 0
    assert not [path for path in site.rglob("*") if "node_modules" in path.parts or path.name == "conftest.py"]
    assert (site / "wsimil" / "cli" / "__pycache__").is_dir()  # nobody can write it later


def test_a_wheel_without_the_page_ends_the_build(tmp_path: Path, environment: Path, context: Path) -> None:
    shutil.copytree(context, tmp_path / "context")
    (tmp_path / "context" / STATIC / "viewer.js").unlink()
    # The hook would build it anew where npm is; a stage of Python has none.
    done = step(
        "application.sh", str(tmp_path / "env"), folder=tmp_path / "context", BUILD_PYTHON=sys.executable,
        PATH=f"{Path(sys.executable).parent}:{without_npm(tmp_path)}",
    )  # fmt: skip
    assert done.returncode != 0
    assert "holds no wsimil/export/viewer/static" in done.stderr
    assert not (tmp_path / "env").exists()


def without_npm(folder: Path) -> Path:
    """A folder of the programs that the steps call."""
    programs = folder / "programs"
    programs.mkdir()
    for name in ("bash", "env", "mktemp", "rm", "sh"):
        (programs / name).symlink_to(str(shutil.which(name)))
    return programs


def test_a_user_without_a_name_goes_from_a_slide_to_features(
    environment: Path, open_folder: Path, as_reader: list[str], make_slide: Callable[..., Path]
) -> None:
    data, temporary = open_folder / "data", open_folder / "tmp"
    temporary.mkdir(mode=0o1777)
    temporary.chmod(0o1777)
    make_slide(data / "slides" / "case.tif")
    (data / "features").mkdir()
    os.chown(data / "features", SOMEONE, SOMEONE)

    def wsimil(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*as_reader, "wsimil", *words], cwd=data, capture_output=True, text=True,
            env={
                "PATH": f"{environment / 'command'}:{environment / 'bin'}:/usr/bin:/bin",
                "TMPDIR": str(temporary), "OMP_NUM_THREADS": "1",
                **{key: value for key, value in os.environ.items() if key.startswith("OPENBLAS_")},
            },
        )  # fmt: skip

    assert wsimil("--version").stdout.split()[-1] == __version__
    done = wsimil("extract", "slides", "-o", "features", "--device", "cpu")
    assert done.returncode == 0, done.stdout + done.stderr
    assert [path.name for path in (data / "features").rglob("case*.h5")] == ["case.h5"]
    assert wsimil("extract", "slides", "-o", "slides/features", "--device", "cpu").returncode == 2
