"""Opening a folder: the backend that is there, or words about what is."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Literal

import pytest

from wsimil.errors import OutputError, StoreError
from wsimil.store import Backend, open_store
from wsimil.store.base import slide_path
from wsimil.testing.store_laws import make_bag


@pytest.mark.parametrize("backend", ["hdf5", "zarr"])
def test_the_backend_that_is_there_is_opened(tmp_path: Path, backend: Backend) -> None:
    open_store(tmp_path, mode="w", backend=backend).write(make_bag())
    for mode in ("r", "w"):
        assert open_store(tmp_path, mode="r" if mode == "r" else "w").read("slide-1").slide_id == "slide-1"


def test_a_new_folder_is_made_and_holds_hdf5(tmp_path: Path) -> None:
    path = open_store(tmp_path / "a" / "b", mode="w").write(make_bag())
    assert path == tmp_path / "a" / "b" / "slide-1.h5"


def test_a_folder_without_features_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "failures.csv").touch()
    (tmp_path / ".x.h5").touch()
    with pytest.raises(StoreError, match=r"holds no feature files \(\*\.h5, \*\.zarr\); give the folder"):
        open_store(tmp_path, mode="r")


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    for backend in (None, "hdf5"):
        with pytest.raises(StoreError, match=f"{tmp_path / 'none'} does not exist; give the folder"):
            open_store(tmp_path / "none", mode="r", backend="hdf5" if backend else None)


@pytest.mark.parametrize("mode", ["r", "w"])
def test_a_file_is_not_a_folder(tmp_path: Path, mode: Literal["r", "w"]) -> None:
    path = open_store(tmp_path, mode="w").write(make_bag())
    with pytest.raises(StoreError, match=r"slide-1\.h5 is a file, wanted the folder"):
        open_store(path, mode=mode)


def test_a_folder_of_two_backends_wants_one_named_and_is_not_written(tmp_path: Path) -> None:
    open_store(tmp_path / "other", mode="w", backend="zarr").write(make_bag("z"))
    open_store(tmp_path, mode="w").write(make_bag("h"))
    (tmp_path / "other" / "z.zarr").rename(tmp_path / "z.zarr")
    for mode in ("r", "w"):
        with pytest.raises(StoreError, match=r"holds both \.h5 and \.zarr features"):
            open_store(tmp_path, mode="r" if mode == "r" else "w")
    assert open_store(tmp_path, mode="r", backend="zarr").ids() == ["z"]
    assert open_store(tmp_path, mode="r", backend="hdf5").ids() == ["h"]
    with pytest.raises(StoreError, match=r"holds \.h5 features, zarr was asked for"):
        open_store(tmp_path, mode="w", backend="zarr")


def test_a_second_backend_is_not_mixed_in(tmp_path: Path) -> None:
    open_store(tmp_path, mode="w").write(make_bag())
    with pytest.raises(StoreError, match=r"holds \.h5 features, zarr was asked for: choose another output folder"):
        open_store(tmp_path, mode="w", backend="zarr")


def test_an_unknown_backend_lists_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="got backend 'parquet', wanted one of: hdf5, zarr"):
        open_store(tmp_path, mode="w", backend="parquet")  # type: ignore[arg-type]


def test_a_place_that_cannot_be_written_is_refused_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="choose another output folder"):
        open_store(tmp_path / "file" / "features", mode="w")


def test_two_ids_that_the_file_system_takes_for_one_are_told_apart(tmp_path: Path) -> None:
    # A link does here what macOS does with Slide.h5 and slide.h5.
    store = open_store(tmp_path, mode="w")
    store.path("slide").symlink_to(store.write(make_bag("Slide")))
    with pytest.raises(
        StoreError, match=r"holds the features of slide 'Slide', wanted 'slide'.*give one of the slides another id"
    ):
        store.write(make_bag("slide"))
    assert store.read("Slide").slide_id == "Slide"


def test_an_id_that_is_too_long_is_shown_in_part(tmp_path: Path) -> None:
    with pytest.raises(
        StoreError, match=r"slide id 'x{40}'\.\.\. .*: it has 300 bytes, wanted at most 200; give the slide"
    ):
        slide_path(tmp_path, "x" * 300, ".h5")


def test_opening_and_listing_needs_no_torch_and_only_one_backend(tmp_path: Path) -> None:
    open_store(tmp_path, mode="w").write(make_bag())
    code = """
import sys
import wsimil.store
assert not {"numpy", "h5py", "zarr"} & set(sys.modules), "importing the room is not cheap"
from pathlib import Path
assert wsimil.store.open_store(Path(sys.argv[1]), mode="r").ids() == ["slide-1"]
assert not {"torch", "zarr", "openslide"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
