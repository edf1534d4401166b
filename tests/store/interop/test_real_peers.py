"""Round trips through the other tools' own code; `make peers` installs it, elsewhere these tests are skipped."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest

from wsimil.errors import StoreError
from wsimil.stages.convert import ConvertOptions, convert
from wsimil.stages.features import open_features
from wsimil.store import open_store

HERE = Path(__file__).parent
PYTHON = Path(os.environ.get("WSIMIL_PEERS_PYTHON", HERE.parents[2] / ".venv-peers" / "bin" / "python"))

Arrays = Mapping[str, np.ndarray]
RunPeer = Callable[..., Arrays]


@pytest.fixture
def peer(tmp_path: Path) -> RunPeer:
    """Runs a verb of peers/run.py; the arrays that it leaves."""
    if not PYTHON.is_file():
        pytest.skip("the other tools are not installed here; make peers does it")

    def run(*arguments: str | Path) -> Arrays:
        truth = tmp_path / "truth.npz"
        command = [str(PYTHON), str(HERE / "peers" / "run.py"), *map(str, arguments), str(truth)]
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr[-3000:]
        with np.load(truth) as arrays:
            return dict(arrays)

    return run


def in_raster_order(arrays: Arrays) -> tuple[np.ndarray, np.ndarray]:
    order = np.lexsort((arrays["xy0"][:, 0], arrays["xy0"][:, 1]))
    return arrays["xy0"][order], arrays["features"][order]


@pytest.fixture
def slide(make_slide, tmp_path: Path) -> Path:
    return make_slide(tmp_path / "slides" / "s.tiff", size_px=(3000, 2500), mpp=0.25)


def test_a_store_of_lazyslide_is_a_bag_of_ours(peer: RunPeer, slide: Path, tmp_path: Path) -> None:
    truth = peer("write_lazyslide", slide, tmp_path)
    with pytest.raises(StoreError, match="tables plip_tiles, resnet50_tiles of tile features, wanted one"):
        open_features(tmp_path).header("s")
    xy0, features = in_raster_order(truth)
    bag = open_features(tmp_path, encoder="resnet50").read("s")
    np.testing.assert_array_equal(bag.features, features)
    np.testing.assert_array_equal(bag.grid.xy0, xy0)
    assert bag.grid.size0 == truth["side"]
    assert bag.grid.slide.size0_px == (3000, 2500)
    assert bag.grid.slide.mpp == pytest.approx(0.25)
    np.testing.assert_array_equal(open_features(tmp_path, encoder="plip").read("s").features, features[:, :3] * 2)


def test_lazyslide_reads_what_is_written_for_it(peer: RunPeer, slide: Path, peers, tmp_path: Path) -> None:
    xy0 = np.array([[x, y] for x in range(0, 2500, 257) for y in range(0, 2000, 311)])
    source = peers.stamp("s", xy0)
    ours, there = tmp_path / "ours", tmp_path / "there"
    assert not convert(source, ours, options=ConvertOptions(slides=slide.parent)).failures
    assert not convert(ours, there, options=ConvertOptions(to="spatialdata")).failures
    bag = open_store(ours, mode="r").read("s")
    found = peer("read_lazyslide", there / "s.zarr", slide)
    np.testing.assert_array_equal(found["features"], bag.features.astype(np.float32))
    np.testing.assert_array_equal(found["xy0"], bag.grid.xy0)
    np.testing.assert_array_equal(found["side"], 256)
    np.testing.assert_allclose(found["spec"], [256, 224, 64 / 224, 0.25], rtol=1e-6)


def test_a_run_of_slide2vec_with_hs2p_is_a_bag_of_ours(peer: RunPeer, slide: Path, tmp_path: Path) -> None:
    truth = peer("write_slide2vec", slide, tmp_path / "run")
    xy0, features = in_raster_order(truth)
    store = open_features(tmp_path / "run")
    assert store.ids() == ["s_a", "s_b"]
    for slide_id in store.ids():
        bag = store.read(slide_id)
        np.testing.assert_array_equal(bag.features, features)
        np.testing.assert_array_equal(bag.grid.xy0, xy0)
        assert bag.grid.size0 == truth["side"]
        assert bag.grid.slide.size0_px == (3000, 2500)
        assert bag.grid.slide.mpp == pytest.approx(0.25)
        np.testing.assert_array_equal(np.sort(bag.grid.tissue), np.sort(truth["tissue"]))
    assert len(xy0) > 20


def test_torchmil_reads_what_is_written_for_trident(peer: RunPeer, peers, tmp_path: Path) -> None:
    source = peers.trident("s")
    ours, there = tmp_path / "ours", tmp_path / "there"
    assert not convert(source, ours, options=ConvertOptions(mpp=0.25)).failures
    assert not convert(ours, there, options=ConvertOptions(to="trident")).failures
    bag = open_store(ours, mode="r").read("s")
    found = peer("read_torchmil", there, "uni_v1", "s")
    np.testing.assert_array_equal(found["features"], bag.features)
    np.testing.assert_array_equal(found["xy0"], bag.grid.xy0 - bag.grid.xy0.min(axis=0))
