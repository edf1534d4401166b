"""The viewer's page: one HTML document whose data are inert text, and which may load nothing but what it came with."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping
from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from wsimil import __version__
from wsimil.errors import ConfigError
from wsimil.export.viewer.built import Built
from wsimil.provenance import Json

SERVER_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self';"
    " base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
# WebKit copies all that it has of an element with every few KiB that it reads: with 100 MB in one no page came in a minute.
DATA_PART_CHARS = 1 << 18
_ENDS_SCRIPT = re.compile(r"</script|<!--", re.IGNORECASE)
_ENDS_STYLE = re.compile(r"</style", re.IGNORECASE)
_ESCAPES = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}


def server_page(index: Mapping[str, Json], *, base: str) -> str:
    """The page that `wsimil view` serves under the path `base`, which ends with a slash."""
    data: dict[str, Json] = {"mode": "server", "base": base, "index": index}
    return _render(data, policy=None, base=base, built=None)


def static_page(index: Mapping[str, Json], cases: Mapping[str, Json], built: Built, *, pictures: bool) -> str:
    """The page as a file that holds its script and style; `pictures` lie beside it, or all are in it.

    Pictures beside it are images, and scripts of `handing_over`, which only the page's own script may ask for.

    Raises ConfigError where the script or the style cannot stand in a page.
    """
    if _ENDS_SCRIPT.search(built.script) or _ENDS_STYLE.search(built.style):
        raise ConfigError("the viewer's script cannot stand in a page: it holds the end of a script; update wsimil")
    asked, beside = (" 'strict-dynamic'", "'self' file: ") if pictures else ("", "")
    policy = (
        f"default-src 'none'; script-src {_hash(built.script)}{asked}; style-src {_hash(built.style)};"
        f" img-src {beside}data: blob:;"
        " base-uri 'none'; form-action 'none'"
    )
    data: dict[str, Json] = {"mode": "static", "base": "", "index": index, "cases": cases}
    return _render(data, policy=policy, base="", built=built)


def data_url(jpeg: bytes) -> str:
    """A picture as text that stands for its address."""
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode('ascii')}"


def handing_over(jpeg: bytes) -> str:
    """The script that hands a picture to a page that asks for it.

    A page that was opened as a file may read the pixels of a data: URL, as it must for a screenshot, and of no image file.
    """
    return f'document.currentScript.dataset.picture="{data_url(jpeg)}";\n'


def inert_json(value: Json | Mapping[str, Json]) -> str:
    """JSON that can stand in a script element whatever its texts are. Raises ValueError for NaN."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=dict)
    return re.sub("[<>&\u2028\u2029]", lambda found: _ESCAPES[found[0]], text)


def _render(data: Mapping[str, Json], *, policy: str | None, base: str, built: Built | None) -> str:
    return (
        _environment()
        .get_template("viewer.html")
        .render(
            version=__version__,
            policy=policy,
            base=base,
            data=[Markup(part) for part in _parts(inert_json(data))],  # noqa: S704 - nothing in it can end the element
            script=None if built is None else Markup(built.script),  # noqa: S704 - ours, and checked
            style=None if built is None else Markup(built.style),  # noqa: S704 - as above
            licenses=None if built is None else Markup(inert_json(built.licenses)),  # noqa: S704 - as the data
        )
    )


def _parts(text: str) -> list[str]:
    return [text[at : at + DATA_PART_CHARS] for at in range(0, len(text), DATA_PART_CHARS)]


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode("utf-8")).digest()
    return f"'sha256-{base64.b64encode(digest).decode('ascii')}'"


@cache
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("wsimil.export.viewer"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
