"""Results made in a folder of their own come to their places, whole, and whoever is first stays."""

from __future__ import annotations

from collections.abc import Sequence

from wsimil.errors import OutputError
from wsimil.files import remove_stale
from wsimil.provenance import Json
from wsimil.worklist import disk
from wsimil.worklist.ledger import Attempt, Ledger


def begin(attempt: Attempt) -> None:
    """Make the folder in which the results of a try are made. Raises OutputError."""
    disk.make_folder(attempt.scratch)


def commit(
    ledger: Ledger, attempt: Attempt, *, folders: Sequence[str] = (), summary: Json = None, seconds: float = 0.0
) -> bool:
    """Publish all that lies in the scratch folder of a try at the same place below the plan's folder, and then the receipt.

    Each of `folders`, paths relative to the plan's folder, goes there as one piece; everything else file by file. What another
    try has put there stays. The receipt names every product with its SHA-256 as it lies there, and those that were there before.
    False where another try's receipt was there first. Raises OutputError, also where the scratch folder was cleared away.
    """
    root = ledger.plan.folder
    products: dict[str, Json] = {}
    kept: list[Json] = []
    # What goes file by file gets other names; those it has here need not outlive a crash, and each would cost a sync.
    files = [path.relative_to(attempt.scratch) for path in disk.sync_tree(attempt.scratch, entries=bool(folders))]
    for folder in folders:
        target = root / folder
        disk.make_folder(target.parent)
        if not disk.adopt_folder(attempt.scratch / folder, target):
            kept.append(folder)
        products |= {str(path.relative_to(root)): disk.sha256_of(path) for path in disk.sync_tree(target)}
    for name in files:
        if any(name.is_relative_to(folder) for folder in folders):
            continue
        target = root / name
        disk.make_folder(target.parent)
        if not disk.adopt(attempt.scratch / name, target):
            kept.append(str(name))
        products[str(name)] = disk.sha256_of(target)
    # Who is late may find it gone, or half of it listed: the unit was finished or set aside meanwhile.
    if not disk.exists(attempt.scratch):
        raise OutputError(
            f"{attempt.scratch} was cleared away while {attempt.unit.name} was made; its unit was finished by then"
        )
    receipt: dict[str, Json] = {"seconds": round(seconds, 3), "products": products, "kept": kept, "summary": summary}
    first = ledger.finish(attempt, receipt)
    clear(attempt)
    return first


def clear(attempt: Attempt) -> None:
    """Remove the scratch folders of a unit that is done, those of tries that died too."""
    for number in range(1, attempt.number + 1):
        disk.remove_folder(attempt.scratch.with_name(f"{attempt.unit.id}.{number}"))


def sweep(ledger: Ledger) -> None:
    """Remove what nobody needs any more: scratch folders of units that are finished, of orphans that woke up late too.

    Raises OutputError.
    """
    scratch = ledger.plan.work / "scratch"
    scanned = ledger.scan()
    for name in disk.names(scratch):
        unit_id, _, number = name.partition(".")
        # Not of a newer try than was seen: the unit may have been forgiven since.
        if unit_id in scanned and scanned[unit_id].is_finished and int(number) <= scanned[unit_id].newest:
            disk.remove_folder(scratch / name)
    for folder in (scratch, ledger.card.parent):
        remove_stale(folder)
