"""Draws by counter, against the published answers and by their statistics."""

from __future__ import annotations

import pytest
import torch

from wsimil.ops.philox import philox


# Known answers of philox4x32-10, as its authors publish them with Random123 (kat_vectors).
@pytest.mark.parametrize(
    ("seed", "counter", "words"),
    [
        (0, (0, 0, 0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        (-1, (-1, -1, -1, -1), (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            0x299F31D0A4093822,
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_words_are_those_of_its_authors(seed, counter, words):
    assert tuple(int(word) for word in philox(torch.tensor([seed]), counter)) == words


def test_a_word_does_not_depend_on_what_else_is_drawn():
    instances = torch.arange(1000)
    many = philox(torch.tensor([7]), (instances[:, None], torch.arange(5), 3, 1))[2]
    assert many.shape == (1000, 5)
    assert many[613, 4] == philox(torch.tensor([7]), (613, 4, 3, 1))[2]


def test_every_part_of_the_counter_and_of_the_seed_counts():
    seen = {int(philox(torch.tensor([9]), (1, 2, 3, 4))[0])}
    for part in range(4):
        counter = [1, 2, 3, 4]
        counter[part] += 10
        seen.add(int(philox(torch.tensor([9]), tuple(counter))[0]))
    seen |= {int(philox(torch.tensor([9 + (1 << bit)]), (1, 2, 3, 4))[0]) for bit in (0, 31, 32, 62)}
    assert len(seen) == 9


def test_words_are_even():
    words = torch.stack(philox(torch.tensor([3]), (torch.arange(20_000), 0, 0, 0)))
    share = words.double() / 2**32
    assert (share.mean(dim=1) - 0.5).abs().max() < 4 * 12**-0.5 / 20_000**0.5
    assert (share.std(dim=1) - 12**-0.5).abs().max() < 0.005
    correlation = torch.corrcoef(share)
    assert (correlation - torch.eye(4)).abs().max() < 0.03
