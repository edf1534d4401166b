"""A store under pseudonyms gives the same features, and its slides' ids to nobody."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from wsimil.errors import StoreError
from wsimil.pseudonyms import Pseudonyms
from wsimil.store import open_store
from wsimil.store.renamed import renamed
from wsimil.testing.store_laws import make_bag

NAMES = Pseudonyms(bytes(32))


def test_features_and_places_are_those_of_the_slide_and_the_id_is_nowhere(tmp_path: Path) -> None:
    store = open_store(tmp_path / "features", mode="w")
    bag = make_bag("JANE-DOE")
    store.write(bag)
    under = renamed(store, NAMES)
    name = NAMES.name("JANE-DOE")
    assert under.ids() == [name]
    assert name in under
    assert "JANE-DOE" not in under
    found = under.read(name)
    np.testing.assert_array_equal(found.features, bag.features)
    np.testing.assert_array_equal(found.grid.xy0, bag.grid.xy0)
    assert found.slide_id == under.header(name).slide_id == name
    assert "JANE" not in f"{found!r}{under.header(name)!r}"
    np.testing.assert_array_equal(under.read_features(name), bag.features)


def test_an_error_speaks_of_the_name_and_of_no_folder(tmp_path: Path) -> None:
    store = open_store(tmp_path / "features", mode="w")
    store.write(make_bag("JANE-DOE"))
    under = renamed(store, NAMES)
    store.path("JANE-DOE").write_bytes(b"no features")
    for ask in (under.read, under.header, under.read_features):
        with pytest.raises(StoreError) as caught:
            ask(NAMES.name("JANE-DOE"))
        assert NAMES.name("JANE-DOE") in str(caught.value)
        assert "JANE" not in str(caught.value)
        assert str(tmp_path) not in str(caught.value)
        assert caught.value.__cause__ is None
    with pytest.raises(StoreError, match="no features of this name"):
        under.read("JANE-DOE")


@pytest.mark.parametrize("folder", [".", "TCGA", "features"])
def test_no_part_of_an_id_stays_where_the_folder_is_called_by_another_part(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder was taken out first, and an id that it had a part of was none any more: "JANE(features)DX1(features)h5"."""
    (tmp_path / folder).mkdir(exist_ok=True)
    monkeypatch.chdir(tmp_path)
    store = open_store(Path(folder), mode="w")
    store.write(make_bag("TCGA-JANE.DX1"))
    under = renamed(store, NAMES)
    store.path("TCGA-JANE.DX1").write_bytes(b"no features")
    (name,) = under.ids()
    with pytest.raises(StoreError) as caught:
        under.read(name)
    where = "" if folder == "." else "(features)/"
    assert str(caught.value).startswith(f"{where}{name}.h5 is damaged")
    assert "JANE" not in str(caught.value)
    again = NAMES.inert(str(caught.value), ["TCGA-JANE.DX1"], folder=Path(folder))
    assert again == str(caught.value)
