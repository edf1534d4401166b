"""Masks to polygons along pixel edges, and polygons to masks by pixel centres: each undoes the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# Directions of travel with tissue on the right hand, y down: east, south, west, north.
_STEP = np.array([(1, 0), (0, 1), (-1, 0), (0, -1)], dtype=np.int64)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outline:
    """One 4-connected piece of a mask: the ring around it and the rings around its holes.

    Rings are int64 [n, 2] (x, y) corners in mask px, not closed, without points in the middle of an edge. The exterior runs
    clockwise on the screen, holes the other way.
    """

    exterior: NDArray[np.int64]
    holes: tuple[NDArray[np.int64], ...]


def outlines(mask: NDArray[np.bool_]) -> list[Outline]:
    """The pieces of a mask [h, w], in the order of their first pixel, row by row.

    No ring touches itself: where a piece closes on itself at a corner only, what it encloses becomes a hole.
    """
    from scipy import ndimage  # outlines that are read from a file come without

    labels, count = ndimage.label(mask)
    exteriors: dict[int, NDArray[np.int64]] = {}
    holes: dict[int, list[NDArray[np.int64]]] = {label: [] for label in range(1, count + 1)}
    for label, loop in _loops(mask, labels):
        for ring in _simple_rings(loop):
            if _doubled_area(ring) > 0:
                exteriors[label] = ring
            else:
                holes[label].append(ring)
    return [Outline(exterior=exteriors[label], holes=tuple(holes[label])) for label in range(1, count + 1)]


def fill(rings: Sequence[NDArray[np.float64]], shape: tuple[int, int]) -> NDArray[np.bool_]:
    """The pixels of a mask [h, w] whose centre lies inside, by the even-odd rule over all rings of one polygon.

    Rings are float64 [n, 2] (x, y) in mask px, closed or not, in either direction; parts beyond the mask are cut off.
    """
    height, width = shape
    toggles = np.zeros((height, width + 1), dtype=np.uint8)
    for ring in rings:
        start, end = ring, np.roll(ring, -1, axis=0)
        upper = np.where((start[:, 1] <= end[:, 1])[:, None], start, end)
        lower = np.where((start[:, 1] <= end[:, 1])[:, None], end, start)
        # An edge crosses the rows whose centre y + 0.5 lies in [upper y, lower y).
        first = np.clip(np.ceil(upper[:, 1] - 0.5), 0, height).astype(np.int64)
        last = np.clip(np.ceil(lower[:, 1] - 0.5), 0, height).astype(np.int64)
        spans = last - first
        edge = np.repeat(np.arange(len(ring)), spans)
        row = np.arange(int(spans.sum())) - np.repeat(np.cumsum(spans) - spans, spans) + first[edge]
        slope = (lower[edge, 0] - upper[edge, 0]) / (lower[edge, 1] - upper[edge, 1])
        x = upper[edge, 0] + (row + 0.5 - upper[edge, 1]) * slope
        column = np.clip(np.ceil(x - 0.5), 0, width).astype(np.int64)
        np.add.at(toggles, (row, column), 1)
    return np.asarray(np.cumsum(toggles, axis=1, dtype=np.uint8)[:, :width] % 2 == 1)


def _loops(mask: NDArray[np.bool_], labels: NDArray[np.integer]) -> list[tuple[int, NDArray[np.int64]]]:
    """Every closed walk along pixel edges with tissue on the right, as (label of that tissue, corners [n, 2])."""
    padded = np.pad(mask, 1)
    nw, ne, sw, se = padded[:-1, :-1], padded[:-1, 1:], padded[1:, :-1], padded[1:, 1:]
    # leaves[d][y, x]: an edge leaves vertex (x, y) in direction d.
    leaves = np.stack([se & ~ne, sw & ~se, nw & ~sw, ne & ~nw])
    index = np.full(leaves.shape, -1, dtype=np.int64)
    direction, y, x = np.nonzero(leaves)
    index[direction, y, x] = np.arange(len(x))
    to_x, to_y = x + _STEP[direction, 0], y + _STEP[direction, 1]
    # Turning right where one can keeps pixels that touch at a corner only apart.
    right = index[(direction + 1) % 4, to_y, to_x]
    ahead = index[direction, to_y, to_x]
    left = index[(direction + 3) % 4, to_y, to_x]
    following = np.where(right >= 0, right, np.where(ahead >= 0, ahead, left)).tolist()
    label = _label_on_the_right(labels, direction, x, y).tolist()
    seen = bytearray(len(following))
    loops: list[tuple[int, NDArray[np.int64]]] = []
    for begin in range(len(following)):
        if seen[begin]:
            continue
        walk: list[int] = []
        at = begin
        while not seen[at]:
            seen[at] = 1
            walk.append(at)
            at = following[at]
        corner = direction[walk] != direction[np.roll(walk, 1)]
        loops.append((label[begin], np.stack([x[walk], y[walk]], axis=1)[corner]))
    return loops


def _label_on_the_right(
    labels: NDArray[np.integer], direction: NDArray[np.int64], x: NDArray[np.int64], y: NDArray[np.int64]
) -> NDArray[np.integer]:
    column = x - np.isin(direction, (1, 2))
    row = y - np.isin(direction, (2, 3))
    return np.asarray(labels[row, column])


def _simple_rings(loop: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Cut a loop where it meets itself; a loop that does not is returned as it is."""
    if len(np.unique(loop, axis=0)) == len(loop):
        return [loop]
    rings: list[NDArray[np.int64]] = []
    path: list[tuple[int, int]] = []
    place: dict[tuple[int, int], int] = {}
    for px, py in loop.tolist():
        point = (px, py)
        if point in place:
            begin = place[point]
            rings.append(np.array(path[begin:], dtype=np.int64))
            for dropped in path[begin + 1 :]:
                del place[dropped]
            del path[begin + 1 :]
        else:
            place[point] = len(path)
            path.append(point)
    rings.append(np.array(path, dtype=np.int64))
    return rings


def _doubled_area(ring: NDArray[np.int64]) -> int:
    """Twice the enclosed area, positive where the ring runs clockwise on the screen."""
    after = np.roll(ring, -1, axis=0)
    return int(np.sum(ring[:, 0] * after[:, 1] - after[:, 0] * ring[:, 1]))
