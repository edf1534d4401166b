"""One tile alone, and all but one."""

from __future__ import annotations

import pytest
import torch

from tests.evaluation.attribution.models import ALL, build
from wsimil.errors import ModelError
from wsimil.evaluation.attribution import leaving
from wsimil.evaluation.attribution.scoring import score
from wsimil.mil.batch import BagBatch, pack
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


def test_leaving_out_that_would_take_hours_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leaving, "_MOST_ROWS", 63 * 62 - 1)
    bags = make_bags((63,))
    with pytest.raises(ModelError, match="closed form in this method, and answering anew without each of 63 tiles"):
        score(build("transmil", wide=False), bags, "leave_one_out")
    score(build("abmil", wide=False), bags, "leave_one_out")


@pytest.mark.parametrize("kind", ["single", "leave_one_out"])
def test_many_tiles_are_asked_of_in_several_packs(kind, monkeypatch: pytest.MonkeyPatch) -> None:
    model, bags = build("dtfd afs"), make_bags((23, 4), dtype=torch.float64)
    whole = score(model, bags, kind)
    monkeypatch.setattr(leaving, "_BAGS_OF_ONE", 5)
    monkeypatch.setattr(leaving, "_ROWS", 50)
    torch.testing.assert_close(score(model, bags, kind).values, whole.values, rtol=1e-12, atol=1e-13)
