"""What is told of slides that failed in their last extraction, and are used with the features of an earlier one."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from wsimil.cohort import Finding


def used_though_failed(failed: Collection[str], used: Iterable[str]) -> tuple[Finding, ...]:
    """What is to be said where slides that `failed` in their last extraction are among the `used` ones."""
    doubtful = tuple(sorted({*failed} & {*used}))
    what = "slides failed in the last extraction, and are used with the features of an earlier one"
    return (Finding(what=what, slide_ids=doubtful),) if doubtful else ()
