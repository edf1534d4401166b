"""view: predictions and their slides in a browser on this machine, until Ctrl-C."""

from __future__ import annotations

import getpass
import html
import os
import socket
import sys
import tempfile
import webbrowser
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from wsimil.errors import ConfigError
from wsimil.export.viewer.built import Built, read_built
from wsimil.geometry import Origin
from wsimil.stages.viewing.desk import Desk
from wsimil.stages.viewing.notebook import Notebook
from wsimil.stages.viewing.pictures import Pictures
from wsimil.stages.viewing.server import ViewServer
from wsimil.stages.viewing.study import open_study


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewOptions:
    """What a user may choose. `slides` are shown under the scores; `features` give tissue where predictions do not, and with
    `run` what-ifs of any method.

    `cohort_csv` gives labels; `notes` is a folder, that of the predictions' notes by default; `origin` says from where QuPath
    coordinates of notes count.
    """

    slides: Path | None = None
    features: Path | None = None
    run: Path | None = None
    cohort_csv: Path | None = None
    notes: Path | None = None
    origin: Origin = "bounds"
    port: int = 0


def open_viewer(
    predictions: Path, *, options: ViewOptions, report: Callable[[str], None], built: Built | None = None
) -> ViewServer:
    """A server that listens, for whoever calls its `serve_forever`; what a person should know goes to `report`.

    `built` is the page's script and style, as installed by default. Raises WsimilError: no predictions, no page, a port that is
    taken.
    """
    built = built or read_built()
    if options.features is not None and not options.features.exists():
        raise ConfigError(f"--features {options.features} does not exist; give the folder that was predicted")
    study = open_study(predictions, run=options.run, cohort_csv=options.cohort_csv)
    notebook = Notebook(
        options.notes or predictions / "notes", study.cohort, tiling=study.tiling, origin=options.origin
    )
    recompute = None
    if options.run is not None and options.features is not None:
        from wsimil.stages.viewing.recompute import Recompute  # torch takes a second, and many studies do without

        recompute = Recompute(options.run, options.features)
    told = [*study.notes, *notebook.left_out]
    if study.unplaced is not None and options.origin == "bounds":
        told.append(
            f"notes on slide {study.unplaced!r}, and on others like it, cannot be saved: where the scan begins is not known,"
            " because features were made by another tool and converted without the slide, and QuPath counts from there; say"
            " --origin level0, or convert the features with --slides and predict again"
        )
    for note in told:
        report(note)
    desk = Desk(
        study=study,
        pictures=Pictures(options.slides, report=report),
        notebook=notebook,
        built=built,
        recompute=recompute,
        features=options.features,
    )
    return ViewServer(desk, port=options.port, report=report)


def tunnel(server: ViewServer) -> str:
    """The command by which another machine's browser reaches the server of this one."""
    return f"ssh -N -L {server.port}:127.0.0.1:{server.port} {getpass.getuser()}@{socket.gethostname()}"


def serve(server: ViewServer, *, browser: bool) -> None:
    """Answer until Ctrl-C; with `browser`, show the page where there is a screen."""
    with _shown(server.url if browser else None):
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            pass  # how this command ends
        finally:
            server.server_close()
            server.desk.pictures.close()


@contextmanager
def _shown(url: str | None) -> Iterator[None]:
    """Open the page by a file that only its owner reads: the arguments of a browser are seen by everybody on a machine."""
    if url is None or not (sys.platform == "darwin" or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        yield
        return
    handle, name = tempfile.mkstemp(prefix="wsimil-view-", suffix=".html")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(f'<!doctype html><meta http-equiv="refresh" content="0; url={html.escape(url)}">\n')
        webbrowser.open(Path(name).as_uri())
        yield
    finally:
        Path(name).unlink(missing_ok=True)
