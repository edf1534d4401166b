"""Provenance: one digest of everything that decides the numbers."""

from __future__ import annotations

import copy
import pickle
from dataclasses import replace

import pytest

from wsimil.provenance import Json, Provenance, canonical_json, sha256_json


def provenance(**changes: object) -> Provenance:
    fields: dict[str, object] = {
        "encoder": {"name": "uni", "transform": {"mean": [0.485, 1 / 3], "size": 224}},
        "tiling": {"size_px": 256, "mpp": 0.5},
        "pixels": {"reader": "openslide"},
        "slide": {"mpp": 0.2527},
        "slide_digest": "d" * 64,
        "version": "0.1.0",
    }
    return Provenance(**fields | changes)  # type: ignore[arg-type]


def test_every_field_but_the_version_changes_the_digest() -> None:
    changes: dict[str, object] = {
        "encoder": {"name": "uni", "transform": {"mean": [0.485, 1 / 3], "size": 225}},
        "tiling": {"size_px": 256, "mpp": 0.5000001},
        "pixels": {},
        "slide": {"mpp": 0.2528},
        "slide_digest": "e" * 64,
        "recipe_version": 2,
    }
    digests = {provenance(**{name: value}).digest for name, value in changes.items()}
    assert len(digests | {provenance().digest}) == len(changes) + 1
    assert provenance(version="9").digest == provenance().digest
    assert provenance(version="9") == provenance()


def test_the_slide_and_the_pixels_do_not_make_another_kind() -> None:
    other = provenance(slide={"mpp": 0.5}, slide_digest="e", pixels={"reader": "tiff"}, version="2")
    assert other.feature_digest == provenance().feature_digest
    assert provenance().kind_differences(other) == []


def test_without_its_slide_a_provenance_is_of_the_same_kind_and_names_no_file() -> None:
    one = provenance(pixels={"dtype": "float16", "source_file": "s.h5", "source_sha256": "a" * 64})
    kind = one.without_slide()
    assert kind.feature_digest == one.feature_digest
    assert kind == provenance(pixels={"dtype": "float16"}, slide={}, slide_digest="")


@pytest.mark.parametrize("name", ["encoder", "tiling"])
def test_encoder_and_tiling_make_another_kind(name: str) -> None:
    other = provenance(**{name: {"name": "virchow"}})
    assert other.feature_digest != provenance().feature_digest
    assert provenance().kind_differences(other)


def test_json_gives_the_same_provenance_back() -> None:
    tree = provenance().to_json()
    again = Provenance.from_json(tree)
    assert again == provenance()
    assert again.digest == provenance().digest
    assert again.to_json() == tree


def test_json_with_unknown_or_missing_fields_is_refused() -> None:
    tree = provenance().to_json()
    with pytest.raises(TypeError, match="colour"):
        Provenance.from_json(tree | {"colour": 1})
    with pytest.raises(TypeError, match="tiling"):
        Provenance.from_json({name: value for name, value in tree.items() if name != "tiling"})


def test_it_travels_between_processes() -> None:
    for again in (pickle.loads(pickle.dumps(provenance())), copy.deepcopy(provenance())):
        assert again == provenance()
        assert again.digest == provenance().digest


def test_it_cannot_be_changed_through_the_mapping_it_was_made_of() -> None:
    encoder: dict[str, Json] = {"name": "uni", "transform": {"size": 224}}
    made = provenance(encoder=encoder)
    before = made.digest
    encoder["name"] = "virchow"
    encoder["transform"]["size"] = 1  # type: ignore[index, call-overload]
    assert made.digest == before
    with pytest.raises(TypeError):
        made.encoder["name"] = "virchow"  # type: ignore[index]


def test_differences_name_the_path_and_both_values() -> None:
    other = provenance(
        encoder={"name": "virchow", "transform": {"mean": [0.485, 1 / 3], "size": 224}}, slide={"mpp": 0.5}
    )
    assert provenance().differences(other) == ["encoder.name: 'uni' != 'virchow'", "slide.mpp: 0.2527 != 0.5"]
    assert provenance().differences(replace(provenance(), version="2")) == []


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [({"a": None}, {}), ({}, {"a": None}), ({"a": 1}, {"a": 1.0}), ({"a": 1}, {"a": True}), ({"a": {}}, {"a": None})],
)
def test_another_digest_is_always_explained(ours: dict[str, Json], theirs: dict[str, Json]) -> None:
    left, right = provenance(pixels=ours), provenance(pixels=theirs)
    assert left.digest != right.digest
    assert left.differences(right)
    assert left.differences(right)[0].startswith("pixels.a: ")


def test_canonical_json_does_not_depend_on_the_order_of_keys() -> None:
    assert canonical_json({"b": 1, "a": [1, {"d": 2, "c": "µ"}]}) == '{"a":[1,{"c":"µ","d":2}],"b":1}'
    assert sha256_json({"b": 1, "a": 2}) == sha256_json({"a": 2, "b": 1})
    assert len(sha256_json({})) == 64


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_number_that_json_does_not_know_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match="JSON"):
        provenance(tiling={"mpp": value})
