"""Memory for tiles: used again, never while somebody still reads from it, never more than its limit."""

from __future__ import annotations

import threading
from typing import cast

import numpy as np
import torch

from wsimil.extraction.batches import Memory, Part, SlideJob, TileMemory


def part(memory: Memory, count: int) -> Part:
    return Part(job=cast("SlideJob", None), rows=np.arange(count), tiles=memory.tiles(count, 8), memory=memory)


def taken(memory: Memory | None) -> Memory:
    assert memory is not None
    return memory


def test_a_split_piece_is_free_once_both_its_parts_are() -> None:
    pool = TileMemory(most_tiles=4, piece=4, pinned=False)
    first, rest = part(taken(pool.take(4, 8)), 4).split(1)
    assert (len(first), len(rest)) == (1, 3)
    assert first.rows.tolist() + rest.rows.tolist() == [0, 1, 2, 3]
    got = threading.Event()
    threading.Thread(target=lambda: (pool.take(4, 8), got.set()), daemon=True).start()
    pool.give_back(rest.memory)
    assert not got.wait(0.2)
    pool.give_back(first.memory)
    assert got.wait(5)


def test_memory_is_used_again_where_it_fits() -> None:
    pool = TileMemory(most_tiles=16, piece=4, pinned=False)
    one = taken(pool.take(4, 8))
    pool.give_back(one)
    again, another = taken(pool.take(3, 8)), taken(pool.take(4, 8))
    assert again.flat is one.flat
    assert another.flat is not one.flat
    pool.give_back(again)
    larger = taken(pool.take(4, 32))
    assert larger.flat is not one.flat
    assert larger.tiles(4, 32).shape == (4, 32, 32, 3)
    assert larger.tiles(4, 32).dtype == torch.uint8


def test_many_small_pieces_do_not_hold_the_memory_of_large_ones() -> None:
    pool = TileMemory(most_tiles=64, piece=32, pinned=False)
    assert sum(taken(pool.take(1, 8)).flat.numel() for _ in range(32)) == 32 * 8 * 8 * 3


def test_whoever_waits_for_memory_hears_that_the_end_has_come() -> None:
    pool = TileMemory(most_tiles=4, piece=4, pinned=False)
    pool.take(4, 8)
    found: list[Memory | None] = []
    waiting = threading.Thread(target=lambda: found.append(pool.take(1, 8)))
    waiting.start()
    pool.close()
    waiting.join(5)
    assert found == [None]
