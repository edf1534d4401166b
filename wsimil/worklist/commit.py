"""Results made in a folder of their own come to their places, whole, and whoever is first stays."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from hashlib import file_digest
from pathlib import Path

from wsimil.errors import OutputError
from wsimil.files import output_error, publish_file, publish_folder, remove_stale, sync_tree
from wsimil.provenance import Json
from wsimil.worklist.ledger import Attempt, Ledger


def begin(attempt: Attempt) -> None:
    """Make the folder in which the results of a try are made. Raises OutputError."""
    try:
        attempt.scratch.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise output_error(attempt.scratch, error) from error


def commit(
    ledger: Ledger, attempt: Attempt, *, folders: Sequence[str] = (), summary: Json = None, seconds: float = 0.0
) -> bool:
    """Publish all that lies in the scratch folder of a try at the same place below the plan's folder, and then the receipt.

    Each of `folders`, paths relative to the plan's folder, goes there as one piece; everything else file by file. What another
    try has put there stays. The receipt names every product with its SHA-256 as it lies there, and those that were there before.
    False where another try's receipt was there first. Raises OutputError.
    """
    root = ledger.plan.folder
    products: dict[str, Json] = {}
    kept: list[Json] = []
    files = [path.relative_to(attempt.scratch) for path in sync_tree(attempt.scratch)]
    try:
        for folder in folders:
            target = root / folder
            target.parent.mkdir(parents=True, exist_ok=True)
            if not publish_folder(attempt.scratch / folder, target):
                kept.append(folder)
            products |= {
                str(path.relative_to(root)): sha256_of(path) for path in sorted(target.rglob("*")) if path.is_file()
            }
        for name in files:
            if any(name.is_relative_to(folder) for folder in folders):
                continue
            target = root / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if not publish_file(attempt.scratch / name, target):
                kept.append(str(name))
            products[str(name)] = sha256_of(target)
    except OSError as error:
        raise output_error(root, error) from error
    receipt: dict[str, Json] = {"seconds": round(seconds, 3), "products": products, "kept": kept, "summary": summary}
    first = ledger.finish(attempt, receipt)
    clear(attempt)
    return first


def clear(attempt: Attempt) -> None:
    """Remove the scratch folders of a unit that is done, those of tries that died too."""
    for number in range(1, attempt.number + 1):
        shutil.rmtree(attempt.scratch.with_name(f"{attempt.unit.id}.{number}"), ignore_errors=True)


def sweep(ledger: Ledger) -> None:
    """Remove scratch folders of units that are finished: of orphans that woke up late, and of units that were set aside."""
    scanned = ledger.scan()
    remove_stale(ledger.plan.work / "scratch")
    for path in (ledger.plan.work / "scratch").iterdir():
        unit_id = path.name.partition(".")[0]
        if unit_id in scanned and scanned[unit_id].is_finished:
            shutil.rmtree(path, ignore_errors=True)


def sha256_of(path: Path) -> str:
    """Of a file's content, 64 hex digits. Raises OutputError."""
    try:
        with path.open("rb") as file:
            return file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise OutputError(f"{path} cannot be read back: {error.strerror or error}") from error
