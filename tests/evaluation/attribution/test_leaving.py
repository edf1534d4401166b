"""One tile alone, and all but one."""

from __future__ import annotations

import re

import pytest
import torch

from tests.evaluation.attribution.models import ALL, build
from wsimil.errors import ModelError
from wsimil.evaluation.attribution import LEAVE_ONE_OUT_TILES, leaving
from wsimil.evaluation.attribution.scoring import score
from wsimil.mil.batch import BagBatch, pack
from wsimil.mil.ensemble import Ensemble
from wsimil.ops.segment_softmax import segment_softmax
from wsimil.testing.method_laws import make_bags

WITHOUT_FORMULA = {
    "dtfd afs", "dtfd maxs", "dtfd maxmins", "mhim transmil", "mhim recycled", "rrt", "rrt shortcut", "transmil",
    "transmil ppeg",
}  # fmt: skip


def rows_of(bags: BagBatch, rows: list[int]) -> BagBatch:
    return pack([bags.features[rows]], xy0=[bags.xy0[rows]], slide_ids=["some"])


@pytest.mark.parametrize("case", ALL)
def test_single_is_what_is_answered_for_a_bag_of_that_tile(case: str) -> None:
    model, bags = build(case), make_bags((11, 1, 3), dtype=torch.float64)
    found = score(model, bags, "single")
    with torch.no_grad():
        wanted = torch.cat([model(rows_of(bags, [row])).logits for row in range(15)])
    torch.testing.assert_close(found.values, wanted, rtol=1e-10, atol=1e-12)
    assert found.bias is None


@pytest.mark.parametrize("case", ALL)
def test_leave_one_out_is_what_answering_without_the_tile_changes(case: str) -> None:
    model, bags = build(case), make_bags((2, 11), dtype=torch.float64)
    found = score(model, bags, "leave_one_out")
    begins = {0: range(2), 1: range(2, 13)}
    with torch.no_grad():
        whole = model(bags).logits
        for bag, rows in begins.items():
            for row in rows:
                without = model(rows_of(bags, [other for other in rows if other != row])).logits[0]
                torch.testing.assert_close(found.values[row], whole[bag] - without, rtol=1e-8, atol=1e-11)
    if case == "ensemble":
        assert found.rule == "closed form"
    else:
        assert found.rule == ("recomputed" if case in WITHOUT_FORMULA else "closed form")


@pytest.mark.parametrize("case", ["abmil", "acmil gated", "clam multi", "multihead"])
def test_a_tile_that_has_nearly_all_attention_is_left_out_exactly(case: str) -> None:
    model, bags = build(case), make_bags((9,), dtype=torch.float64)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "attention.score" in name or "q_proj" in name:
                parameter *= 3000
        found = score(model, bags, "leave_one_out")
        output = model(bags)
        weights = segment_softmax(output.attention_logits, bags.cu_seqlens)
        assert (1 - weights.max()) < 1e-12
        for row in range(9):
            without = model(rows_of(bags, [other for other in range(9) if other != row])).logits[0]
            torch.testing.assert_close(found.values[row], output.logits[0] - without, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("case", ["abmil", "max of logits", "transmil"])
def test_a_tile_that_is_all_of_its_bag_has_none_to_be_left_out_of(case: str) -> None:
    found = score(build(case), make_bags((1, 3), dtype=torch.float64), "leave_one_out")
    assert found.values[0].isnan().all()
    assert not found.values[1:].isnan().any()


@pytest.mark.parametrize("case", ["transmil", "rrt"])
def test_leaving_out_that_takes_long_is_refused_until_it_is_allowed_and_then_exact(
    case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, bags = build(case), make_bags((63,), dtype=torch.float64)
    with pytest.raises(ModelError) as refused:
        score(model, bags, "leave_one_out", leave_one_out_tiles=62)
    said = re.search(
        r"slide 'slide-0': leave_one_out has no closed form in this method, and answering anew without each of 63 tiles would"
        r" take about \d+ seconds; .* single or contribution instead, or allow it with --leave-one-out-tiles (\d+) ",
        str(refused.value),
    )
    assert said is not None, refused.value
    assert said[1] == "63"
    monkeypatch.setattr(leaving, "_ROWS", 200)
    held: list[int] = []
    aggregate = model.aggregate
    monkeypatch.setattr(model, "aggregate", lambda h, *rest: held.append(len(h)) or aggregate(h, *rest))
    found = score(model, bags, "leave_one_out", leave_one_out_tiles=int(said[1]))
    assert max(held) == 3 * 62, "as many bags go together as ever"
    with torch.no_grad():
        whole = model(bags).logits[0]
        for row in range(63):
            without = model(rows_of(bags, [other for other in range(63) if other != row])).logits[0]
            torch.testing.assert_close(found.values[row], whole - without, rtol=1e-8, atol=1e-11)


def test_a_closed_form_is_never_refused_nor_what_was_always_computed() -> None:
    bags = make_bags((63,))
    score(build("abmil", wide=False), bags, "leave_one_out", leave_one_out_tiles=2)
    assert LEAVE_ONE_OUT_TILES == 4096


def test_an_ensemble_hands_on_what_is_allowed() -> None:
    model, bags = Ensemble([build("transmil"), build("rrt")], ("a", "b")), make_bags((9,), dtype=torch.float64)
    with pytest.raises(ModelError, match="--leave-one-out-tiles 9 "):
        score(model, bags, "leave_one_out", leave_one_out_tiles=8)
    assert score(model, bags, "leave_one_out", leave_one_out_tiles=9).values.isfinite().all()


@pytest.mark.parametrize("kind", ["single", "leave_one_out"])
def test_many_tiles_are_asked_of_in_several_packs(kind, monkeypatch: pytest.MonkeyPatch) -> None:
    model, bags = build("dtfd afs"), make_bags((23, 4), dtype=torch.float64)
    whole = score(model, bags, kind)
    monkeypatch.setattr(leaving, "_BAGS_OF_ONE", 5)
    monkeypatch.setattr(leaving, "_ROWS", 50)
    torch.testing.assert_close(score(model, bags, kind).values, whole.values, rtol=1e-12, atol=1e-13)
