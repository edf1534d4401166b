"""Other tools' files become bags in level-0 px, or a refusal that says what to give."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from wsimil.errors import ConfigError, FeatureError, StoreError
from wsimil.geometry import SlideInfo
from wsimil.stages.features import is_feature_folder, open_features
from wsimil.store.base import InstanceStore
from wsimil.store.interop.detect import find
from wsimil.store.interop.peer_store import PeerStore
from wsimil.store.interop.placed import KnownSlide, PlacedTiles, place

LAYOUTS = ["clam", "trident", "stamp", "atlaspatch", "slide2vec"]
KNOWN = KnownSlide(mpp=0.25, mpp_detail="--mpp")


def opened(folder: Path, **options: object) -> PeerStore:
    store = open_features(folder, **options)  # type: ignore[arg-type]
    assert isinstance(store, PeerStore)
    return store


def placed(folder: Path, slide_id: str = "s", known: KnownSlide = KNOWN, **options: object) -> PlacedTiles:
    return place(opened(folder, **options).read_peer(slide_id), known)


def truth(peers, slide_id: str = "s") -> tuple[np.ndarray, np.ndarray]:
    xy0 = peers.xy0[slide_id]
    order = np.lexsort((xy0[:, 0], xy0[:, 1]))
    return xy0[order], peers.features[slide_id][order]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_rows_come_in_raster_order_with_their_places(layout: str, peers, tmp_path: Path) -> None:
    folder = getattr(peers, layout)("s")
    xy0, features = truth(peers)
    tiles = placed(folder, patches=tmp_path / "peers/clam/RESULTS")
    np.testing.assert_array_equal(tiles.xy0, xy0)
    np.testing.assert_array_equal(tiles.features.astype(np.float32), features)
    assert tiles.size0 == pytest.approx(256, abs=1e-9)
    store = opened(folder)
    assert store.layout == layout
    assert isinstance(store, InstanceStore)
    found = store.read_instances("s")
    np.testing.assert_array_equal(found.features.astype(np.float32), features)
    np.testing.assert_array_equal(found.order_xy, xy0 // 256)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_header_agrees_with_what_is_read(layout: str, peers) -> None:
    store = opened(getattr(peers, layout)("s"))
    header, features = store.header("s"), store.read_features("s")
    assert (header.n, header.dim, header.dtype) == (*features.shape, str(features.dtype))
    assert header.provenance.encoder["weights_sha256"] is None
    assert header.provenance.encoder["stated_by"] == layout


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "slide2vec"])
def test_a_grid_in_um_is_refused_with_the_remedy_where_nobody_states_mpp(layout: str, peers) -> None:
    store = opened(getattr(peers, layout)("s"))
    with pytest.raises(StoreError, match=r"--mpp|--patches"):
        store.read("s")


def test_what_states_its_spacing_is_a_bag_of_ours_at_once(peers) -> None:
    bag = opened(peers.slide2vec("s")).read("s")
    assert bag.grid.slide.mpp == 0.25
    assert bag.grid.slide.mpp_source == "metadata"
    # hs2p takes 0.5 for the 0.51 that was asked; what was read is what counts.
    assert bag.grid.spec.mpp == 0.5
    np.testing.assert_allclose(np.sort(bag.grid.tissue), np.linspace(0.1, 1, 20, dtype=np.float32))
    order = np.lexsort((peers.xy0["s"][:, 0], peers.xy0["s"][:, 1]))
    np.testing.assert_allclose(bag.grid.tissue, np.linspace(0.1, 1, 20, dtype=np.float32)[order])


def test_a_float_patch_size_level0_is_the_whole_number_it_holds(peers) -> None:
    folder = peers.trident("s", size0=256.0)
    with h5py.File(folder / "s.h5") as file:
        assert file["coords"].attrs["patch_size_level0"].dtype == np.float64
    assert placed(folder).size0 == 256
    peers.trident("t", size0=255.5)
    with pytest.raises(StoreError, match=r"patch_size_level0 is 255\.5, wanted a whole number"):
        opened(folder).header("t")


def test_magnifications_of_trident_are_never_taken_for_a_resolution(peers) -> None:
    folder = peers.trident("s")  # says 40x, which would be 0.25
    assert placed(folder, known=KnownSlide(mpp=0.2527, mpp_detail="--mpp")).to_bag().grid.slide.mpp == 0.2527
    with pytest.raises(StoreError, match="do not state µm per pixel; give --mpp, or --slides"):
        opened(folder).read("s")


def test_stamp_coordinates_are_um(peers) -> None:
    folder = peers.stamp("s")
    assert placed(folder).size0 == 256
    half = placed(folder, known=KnownSlide(mpp=0.5, mpp_detail="--mpp"))
    np.testing.assert_array_equal(half.xy0, truth(peers)[0] // 2)
    assert half.size0 == 128
    with pytest.raises(StoreError, match="coordinates are in µm"):
        place(opened(folder).read_peer("s"))


def test_tiles_that_round_to_one_row_are_in_raster_order(peers) -> None:
    """The order was that of the file's coordinates, and `to_bag` refused it."""
    folder = peers.stamp("s")
    with h5py.File(folder / "s.h5", "r+") as file:
        places = file["coords"][...]
        places[:, 1] += 0.01 * (places[:, 0] == 0)
        file["coords"][...] = places
    bag = placed(folder).to_bag()
    xy0, features = truth(peers)
    np.testing.assert_array_equal(bag.grid.xy0, xy0)
    np.testing.assert_array_equal(bag.features.astype(np.float32), features)


@pytest.mark.parametrize(
    ("attributes", "um", "size_um"),
    [
        ({"tile_size": 64.0, "unit": "um", "tile_size_px": 224}, 0.25, 64.0),  # 2.0
        ({"tile_size": 224}, 224 / 256, 256.0),  # 1: coordinates of 256/224 µm
        ({}, 224 / 256, 256.0),  # 1, whose stride says it
    ],
)
def test_older_stamp_files_have_units_of_their_own(attributes, um: float, size_um: float, peers) -> None:
    folder = peers.stamp("s", attributes=attributes, um=um)
    known = KnownSlide(mpp=0.25 if size_um == 64 else 1.0, mpp_detail="--mpp")
    tiles = placed(folder, known=known)
    np.testing.assert_array_equal(tiles.xy0, truth(peers)[0])
    assert tiles.size0 * known.mpp == size_um
    assert tiles.size_px == 224


def test_a_stamp_file_of_unknown_unit_is_refused(peers) -> None:
    folder = peers.stamp("s", attributes={}, um=1.0)
    with pytest.raises(
        StoreError, match="the unit of its coordinates is not stated, and their stride is 256, wanted 224"
    ):
        opened(folder).header("s")


def test_features_of_whole_slides_are_no_bags(peers) -> None:
    folder = peers.stamp("s", attributes={"tile_size_um": 64.0, "unit": "um", "feat_type": "slide", "encoder": "titan"})
    with pytest.raises(StoreError, match="features of a whole slide"):
        opened(folder).header("s")
    folder = peers.trident("t")
    with h5py.File(folder / "t.h5", "a") as file:
        del file["features"]
        file["features"] = np.zeros(6, np.float32)
    with pytest.raises(StoreError, match=r"features have shape \[6\]"):
        opened(folder).header("t")


def test_stamp_files_lie_in_the_folders_of_their_slides(peers) -> None:
    folder = peers.stamp("a", below="site1")
    peers.stamp("b", below="site2/batch")
    assert opened(folder).ids() == ["a", "b"]
    peers.stamp("a", below="site2")
    store = opened(folder)
    assert store.ids() == ["a", "b"]
    assert store.header("b").n == 20
    with pytest.raises(StoreError, match=r"slide id 'a' names 2 files: .*site1/a\.h5, .*site2/a\.h5"):
        store.header("a")


def test_a_tile_of_clam_is_as_large_as_its_patches_file_says(peers, tmp_path: Path) -> None:
    folder = peers.clam("s", patches=False)
    with pytest.raises(StoreError, match=r"how large a tile is stands in the patches .* with --patches"):
        placed(folder)
    results = peers.clam_patches("s", size=512, level=0, downsample=1.0)
    tiles = placed(folder, patches=results)
    assert (tiles.size0, tiles.size_px) == (512, 512)
    beside = folder / "patches"
    results.rename(beside)
    assert placed(folder).size0 == 512


@pytest.mark.parametrize(("size", "stride_px"), [(256, None), (512, 256), (200, None)])
def test_the_overlap_of_clam_is_that_of_its_tiles(peers, size: int, stride_px: int | None) -> None:
    """A tile every 256 px: they told no overlap, whatever their size."""
    folder = peers.clam("s", patches=False)
    tiles = placed(folder, patches=peers.clam_patches("s", size=size, level=0, downsample=1.0))
    assert tiles.stride_px == stride_px
    assert tiles.to_bag().grid.spec.stride_px == (stride_px or size)


def test_the_overlap_of_stamp_is_that_of_its_tiles(peers) -> None:
    """STAMP itself lays none; files of ours in its layout may hold some, and came back without."""
    folder = peers.stamp("s", attributes={"unit": "um", "tile_size_um": 128.0, "tile_size_px": 224})
    assert placed(folder).to_bag().grid.spec.stride_px == 112
    assert placed(peers.stamp("s")).to_bag().grid.spec.stride_px == 224
    peers.stamp("t", um=1.0, attributes={"unit": "um", "tile_size_um": 256.0, "tile_size_px": 512})
    side_by_side = placed(folder, "t", known=KnownSlide(mpp=0.9985, mpp_detail="--mpp"))
    assert side_by_side.to_bag().grid.spec.stride_px == 512


def test_patches_of_another_level_make_another_kind(peers, tmp_path: Path) -> None:
    folder = peers.clam("s")
    peers.clam("t", patches=False)
    results = peers.clam_patches("t", size=64, level=0, downsample=1.0)
    store = opened(folder, patches=results)
    differences = store.header("s").provenance.kind_differences(store.header("t").provenance)
    assert differences == ["tiling.level: 1 != 0"]


def test_tensors_alone_keep_the_order_of_the_file(peers, tmp_path: Path) -> None:
    folder = peers.clam("s")
    (folder / "h5_files" / "s.h5").unlink()
    (folder / "h5_files").rmdir()
    store = opened(folder)
    found = store.read_instances("s")
    np.testing.assert_array_equal(found.features, peers.features["s"])
    np.testing.assert_array_equal(found.order_xy[:, 0], np.arange(20))
    with pytest.raises(StoreError, match="no coordinates, and there are none beside it"):
        store.read("s")


def test_tensors_take_their_places_from_the_h5_files_beside(peers, tmp_path: Path) -> None:
    folder = peers.clam("s")
    tiles = placed(folder / "pt_files", patches=tmp_path / "peers/clam/RESULTS/patches")
    np.testing.assert_array_equal(tiles.features, truth(peers)[1])


def test_old_and_narrow_tensors_are_read(peers, tmp_path: Path) -> None:
    folder = tmp_path / "pt"
    folder.mkdir()
    values = torch.linspace(-2, 2, 12).reshape(4, 3).bfloat16()
    torch.save(values, folder / "narrow.pt")
    torch.save(values.float(), folder / "old.pt", _use_new_zipfile_serialization=False)
    store = opened(folder)
    for slide_id in ("narrow", "old"):
        assert store.header(slide_id).dtype == "float32"
        np.testing.assert_array_equal(store.read_features(slide_id), values.float().numpy())


def test_nothing_but_tensors_is_unpickled(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "sprung",))

    (tmp_path / "pt").mkdir()
    torch.save(Trap(), tmp_path / "pt" / "s.pt")
    torch.save({"a": torch.zeros(2, 2)}, tmp_path / "pt" / "t.pt")
    store = opened(tmp_path / "pt")
    with pytest.raises(StoreError, match="cannot be read as a tensor"):
        store.header("s")
    with pytest.raises(StoreError, match="holds a dict, wanted one tensor"):
        store.header("t")
    assert not (tmp_path / "sprung").exists()


def test_one_of_several_encoders_must_be_named(peers) -> None:
    folder = peers.atlaspatch("s", encoders=("uni_v2", "conch"))
    with pytest.raises(StoreError, match=r"features of conch, uni_v2, wanted one; say which: wsimil convert --encoder"):
        opened(folder).header("s")
    np.testing.assert_array_equal(placed(folder, encoder="conch").features, 2 * truth(peers)[1])
    with pytest.raises(StoreError, match="wanted plip"):
        opened(folder, encoder="plip").header("s")


def test_rows_of_slide2vec_go_where_their_tile_index_says(peers) -> None:
    tiles = placed(peers.slide2vec("s", form="npz"))
    np.testing.assert_array_equal(tiles.xy0, truth(peers)[0])
    # The features of the file were turned round, and its tile_index with them.
    order = np.lexsort((peers.xy0["s"][:, 0], peers.xy0["s"][:, 1]))
    np.testing.assert_array_equal(tiles.features, peers.features["s"][order])


def test_slide2vec_without_its_tiles_still_trains(peers) -> None:
    store = opened(peers.slide2vec("s", tiles=False))
    assert len(store.read_features("s")) == 20
    with pytest.raises(StoreError, match=r"slide2vec: tiles beside tile_embeddings"):
        store.read("s")


@pytest.mark.parametrize("layout", ["clam", "trident", "stamp", "atlaspatch", "slide2vec"])
def test_a_slide_without_tiles_is_an_empty_bag(layout: str, peers, tmp_path: Path) -> None:
    folder = getattr(peers, layout)("s", np.empty((0, 2), np.int64))
    tiles = placed(folder, patches=tmp_path / "peers/clam/RESULTS")
    assert len(tiles.to_bag()) == 0
    assert opened(folder).read_features("s").shape == (0, 6)


def test_an_empty_file_of_unknown_width_is_empty(peers) -> None:
    folder = peers.trident("s", np.empty((0, 2), np.int64))
    with h5py.File(folder / "s.h5", "a") as file:
        attributes = dict(file["features"].attrs)
        del file["features"]
        file["features"] = np.zeros(0, np.float32)
        file["features"].attrs.update(attributes)
    header = opened(folder).header("s")
    assert (header.n, header.dim) == (0, 0)


def test_tiles_that_lie_on_each_other_are_refused_with_their_number(peers) -> None:
    xy0 = np.array([[0, 0], [256, 0], [0, 0], [0, 256], [256, 0]])
    with pytest.raises(StoreError, match="2 of 5 tiles lie where another one lies"):
        placed(peers.trident("s", xy0))


def test_rows_that_do_not_pair_are_refused(peers) -> None:
    folder = peers.trident("s")
    with h5py.File(folder / "s.h5", "a") as file:
        file["features"].resize(19, axis=0)
    store = opened(folder)
    with pytest.raises(StoreError, match="19 rows of features and 20 of coordinates"):
        store.read_features("s")


def test_features_that_are_not_finite_are_refused(peers) -> None:
    folder = peers.trident("s")
    with h5py.File(folder / "s.h5", "a") as file:
        file["features"][3, 1] = np.nan
    with pytest.raises(FeatureError, match="1 of 20 feature rows hold NaN"):
        opened(folder).read_features("s")


def info(**changes: object) -> SlideInfo:
    facts: dict[str, object] = {
        "slide_id": "s", "path": Path("s.svs"), "size0_px": (2000, 1500), "mpp": 0.25, "mpp_source": "metadata",
        "mpp_detail": "openslide.mpp-x", "level_downsamples": (1.0, 4.0), "bounds0_px": (10, 20, 1900, 1400),
        "vendor": "aperio", "digest": "d",
    }  # fmt: skip
    return SlideInfo(**(facts | changes))  # type: ignore[arg-type]


def test_the_slide_gives_mpp_size_and_bounds(peers) -> None:
    tiles = placed(peers.trident("s"), known=KnownSlide(info=info()))
    assert tiles.level_downsamples == (1.0, 4.0)
    bag = tiles.to_bag()
    assert bag.grid.slide == info()
    assert bag.provenance.slide["bounds_known"] is True


def test_another_slide_of_the_same_name_is_refused(peers) -> None:
    with pytest.raises(StoreError, match=r"of a slide of 2000 × 1500 px, s\.svs has 900 × 800"):
        placed(peers.trident("s"), known=KnownSlide(info=info(size0_px=(900, 800))))
    with pytest.raises(StoreError, match=r"8 of 20 tiles lie outside of its 700 × 4000 px"):
        placed(peers.stamp("t"), "t", known=KnownSlide(info=info(slide_id="t", size0_px=(700, 4000))))


def test_patches_of_a_further_level_need_its_downsample(peers) -> None:
    folder, patches = peers.clam("s"), peers.clam_patches("s", size=64, level=1) / "s.h5"
    with h5py.File(patches, "r+") as file:
        del file["coords"].attrs["downsample"]
    with pytest.raises(StoreError, match="level 1 has no downsample; give the patches"):
        placed(folder, patches=patches.parent)
    with h5py.File(patches, "r+") as file:
        file["coords"].attrs["patch_level"] = 0
    assert placed(folder, patches=patches.parent).size0 == 64


def test_what_a_tiling_of_hs2p_says_belongs_to_its_tiles(peers) -> None:
    """Tissue goes with the rows that tile_index names, and the stride is in px of the tile, not of level 0."""
    tissue = placed(peers.slide2vec("s")).tissue
    folder = peers.slide2vec("t", form="npz")
    about = folder.parent / "slide2vec" / "tiles" / "t.coordinates.meta.json"
    tree = json.loads(about.read_text())
    tree["tiling"]["step_px_lv0"] = 192
    about.write_text(json.dumps(tree))
    tiles = placed(folder, "t")
    np.testing.assert_array_equal(tiles.tissue, tissue)
    assert (tiles.size_px, tiles.stride_px) == (128, 96)


def test_tiles_wholly_left_of_a_slide_are_refused_and_those_across_its_edge_are_not(peers) -> None:
    folder = peers.trident("s", np.array([[-255, 0], [1, 0]]))
    assert placed(folder).xy0.tolist() == [[-255, 0], [1, 0]]
    peers.trident("t", np.array([[-256, 0], [0, 0]]))
    with pytest.raises(
        StoreError, match=r"1 of 2 tiles lie outside of its 2000 × 1500 px, the first at level-0 x=-256"
    ):
        placed(folder, "t")


def test_an_overlap_that_is_stated_counts_also_where_no_two_tiles_are_neighbors(peers) -> None:
    folder = peers.trident("s", np.array([[0, 0], [1024, 0], [512, 512]]))
    with h5py.File(folder / "s.h5", "r+") as file:
        file["coords"].attrs["overlap"] = 32
    assert placed(folder).stride_px == 96


def test_a_tiler_and_a_slide_that_disagree_about_mpp_are_refused(peers) -> None:
    folder = peers.slide2vec("s")
    with pytest.raises(StoreError, match=r"features say 0\.25 µm per pixel .*, the slide says 0\.5 .*; say which"):
        placed(folder, known=KnownSlide(info=info(mpp=0.5)))
    said = KnownSlide(info=info(mpp=0.5), mpp=0.5, mpp_detail="manifest")
    assert placed(folder, known=said).mpp == 0.5


def test_what_is_not_known_of_a_slide_is_not_made_up(peers) -> None:
    bag = placed(peers.stamp("s")).to_bag()
    assert bag.provenance.slide["size_known"] is bag.provenance.slide["bounds_known"] is False
    assert np.isnan(bag.grid.tissue).all()
    again = PlacedTiles.of(bag)
    assert again.slide_size0_px is again.bounds0_px is again.tissue is None
    with pytest.raises(StoreError, match="how large the slide is; give --slides"):
        _ = again.known_slide_size0_px


def test_folders_above_the_features_are_understood(peers) -> None:
    job = peers.trident("s").parent
    assert opened(job).ids() == ["s"]
    peers.trident("s", encoder="conch_v15")
    with pytest.raises(StoreError, match="several encoders: features_conch_v15, features_uni_v1; give one of them"):
        open_features(job)


def test_a_folder_of_coordinates_is_no_folder_of_features(peers) -> None:
    folder = peers.clam("s")
    with pytest.raises(StoreError, match="coordinates without features; give the folder of the features"):
        open_features(peers.root / "clam" / "RESULTS" / "patches")
    with pytest.raises(StoreError, match="coordinates of hs2p without features; give the folder tile_embeddings"):
        open_features(peers.slide2vec("t") / "tiles")
    assert is_feature_folder(folder)


def test_bags_of_slideflow_are_named_and_not_read(tmp_path: Path) -> None:
    torch.save(torch.zeros(2, 2), tmp_path / "s.pt")
    np.savez(tmp_path / "s.index.npz", np.zeros((2, 2)))
    with pytest.raises(StoreError, match="bags of slideflow"):
        open_features(tmp_path)


def test_an_unknown_layout_lists_the_known_ones(peers) -> None:
    with pytest.raises(ConfigError, match="wanted one of clam, trident, stamp"):
        find(peers.trident("s"), layout="tridnet")


def test_opening_a_large_folder_opens_one_file(peers) -> None:
    folder = peers.trident("a")
    for number in range(3000):
        (folder / f"s{number:04d}.h5").touch()  # none of which could be opened
    store = opened(folder)
    assert len(store.ids()) == 3001
    assert "s2999" in store
    with pytest.raises(StoreError, match=r"s0001\.h5 cannot be read"):
        store.header("s0001")


def test_a_broken_first_file_does_not_hide_the_others(peers) -> None:
    folder = peers.stamp("b")
    (folder / "a.h5").write_bytes(b"not hdf5")
    assert opened(folder).layout == "stamp"


def test_ours_stays_ours(tmp_path: Path) -> None:
    from wsimil.store import open_store
    from wsimil.testing.store_laws import make_bag

    for backend in ("hdf5", "zarr"):
        open_store(tmp_path / backend, mode="w", backend=backend).write(make_bag())  # type: ignore[arg-type]
        assert find(tmp_path / backend) is None
        assert open_features(tmp_path / backend).read("slide-1").slide_id == "slide-1"


def test_a_peer_is_never_written(peers) -> None:
    store = opened(peers.slide2vec("s"))
    with pytest.raises(StoreError, match="only read here"):
        store.write(store.read("s"))


def test_a_meta_file_that_is_broken_is_named(peers) -> None:
    folder = peers.slide2vec("s")
    (folder / "tiles" / "s.coordinates.meta.json").write_text(json.dumps({"slide": 1}))
    with pytest.raises(StoreError, match=r"s\.coordinates\.meta\.json: it is not a tiling of hs2p"):
        opened(folder).header("s")


def test_features_left_among_slides_do_not_make_a_feature_folder(peers, make_slide, tmp_path: Path) -> None:
    slides = tmp_path / "slides"
    make_slide(slides / "a.tiff")
    peers.stamp("s").rename(slides / "old")
    assert not is_feature_folder(slides)
    assert is_feature_folder(slides / "old")


def test_the_layout_can_be_named(peers, tmp_path: Path) -> None:
    folder = peers.trident("s")
    tiles = placed(folder, layout="trident")
    assert opened(folder, layout="clam").layout == "clam"  # the plain form that both have
    np.testing.assert_array_equal(opened(folder, layout="clam").read_features("s"), tiles.features)
    with pytest.raises(StoreError, match="holds no file of slide2vec"):
        open_features(folder, layout="slide2vec")
