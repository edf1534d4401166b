"""Which device a stage runs on."""

from __future__ import annotations

import platform

import torch

from wsimil.errors import ConfigError
from wsimil.stages.progress import Reporter


def resolve_device(name: str) -> str:
    """The device that `name` means here: "auto" is CUDA where there is one, else the CPU.

    Raises ConfigError where the device does not exist on this machine.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        kind = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"device {name!r}: wanted auto, cpu, cuda or cuda:<number>") from None
    if kind.type not in ("cpu", "cuda"):
        raise ConfigError(f"device {name!r}: wanted auto, cpu, cuda or cuda:<number>")
    count = torch.cuda.device_count()
    if kind.type == "cuda" and (kind.index or 0) >= count:
        raise ConfigError(
            f"device {name!r}: this machine has {count} CUDA devices that torch can use; use --device cpu, or see `wsimil doctor`"
        )
    return name


def resolve_devices(names: str) -> list[str]:
    """The devices that a list such as "cuda:0,cuda:1" means here, or "cuda:all"; one name is one device.

    Raises ConfigError where one does not exist on this machine.
    """
    if names == "cuda:all":
        count = torch.cuda.device_count()
        return [f"cuda:{index}" for index in range(count)] or [resolve_device("cuda")]
    return [resolve_device(name.strip()) for name in names.split(",")]


def tell_slow_precision(device: str, precision: str, reporter: Reporter) -> None:
    """Say it where the CPU has no instructions for a short type: torch multiplies in it one number at a time."""
    if device != "cpu" or precision in ("float32", "fp32") or platform.machine().lower() not in ("x86_64", "amd64"):
        return
    if torch.backends.cpu.get_cpu_capability() in ("DEFAULT", "AVX2"):
        reporter.note(
            f"precision {precision}: this CPU has no instructions for it, and takes more than ten times as long as in float32"
        )
