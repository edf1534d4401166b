"""From a file to the replay of its source."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import cast

from wsimil.errors import WsimilError
from wsimil.testing.parity.recording import Recording
from wsimil.testing.parity.report import Report

_SOURCES = {
    "AMLab-Amsterdam/AttentionDeepMIL": "attention_deep_mil",
    "mahmoodlab/MIL-Lab": "mil_lab",
    "dazhangyu123/ACMIL": "acmil",
    "szc19990412/TransMIL": "transmil",
    "DearCaat/MHIM-MIL": "mhim",
    "binli123/dsmil-wsi": "dsmil",
    "dazhangyu123/AEM": "aem",
    "mahmoodlab/CLAM": "clam",
    "hrzhang1123/DTFD-MIL": "dtfd",
    "DearCaat/RRT-MIL": "rrt",
}
"""Repository, as a recording's configuration names it, to the module of `replays` that knows it."""


def replay_file(path: Path) -> Report:
    """Replay one recording; whatever is wrong with it is in the report."""
    report = Report()
    try:
        recording = Recording(path)
        _replay_of(recording)(recording, report)
    except (WsimilError, ValueError) as error:
        report.fail(str(error))
        return report
    left = recording.uncompared()
    if left:
        report.fail(f"nothing compared: {', '.join(left[:8])}{f' and {len(left) - 8} more' if len(left) > 8 else ''}")
    return report


def _replay_of(recording: Recording) -> Callable[[Recording, Report], None]:
    repository = str(recording.config.get("repo", "")).partition("@")[0]
    if repository not in _SOURCES:
        raise WsimilError(f"no replay is known for {repository!r}; known are {', '.join(_SOURCES)}")
    # ACMIL's repository holds a copy of TransMIL.
    name = "transmil" if "transMIL" in str(recording.config.get("cls")) else _SOURCES[repository]
    module = import_module(f"wsimil.testing.parity.replays.{name}")
    return cast("Callable[[Recording, Report], None]", module.replay)
