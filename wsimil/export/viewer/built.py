"""The page's script, style and licenses, as the installation built them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from wsimil.errors import ConfigError

_FOLDER = Path(__file__).parent / "static"
_REASON = "not_built.txt"


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """What the page consists of; `licenses` are the notices of all that `script` holds."""

    script: str
    style: str
    licenses: str


def read_built(folder: Path = _FOLDER) -> Built:
    """Raises ConfigError where the page was not built, with what to do."""
    try:
        script, style, licenses = (
            (folder / name).read_text(encoding="utf-8") for name in ("viewer.js", "viewer.css", "LICENSES.txt")
        )
    except OSError:
        raise ConfigError(
            f"the viewer's page was not built when wsimil was installed{_reason(folder)}; install Node.js 20 or newer, which"
            " brings npm, and install wsimil again from where it came: pip install --force-reinstall --no-deps --no-cache-dir"
            " <the same place> (-e . in a checkout, where make does it too)"
        ) from None
    return Built(script=script, style=style, licenses=licenses)


def _reason(folder: Path) -> str:
    try:
        return f" ({(folder / _REASON).read_text(encoding='utf-8').strip()})"
    except OSError:
        return ""
