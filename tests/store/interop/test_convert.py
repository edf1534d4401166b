"""Conversions: nothing is lost on the way round, one bad slide stops nobody, a rerun does what is missing."""

from __future__ import annotations

import csv
import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
import zarr
from typer.testing import CliRunner

from wsimil.cli import app
from wsimil.errors import ConfigError, StoreError
from wsimil.files import write_text
from wsimil.provenance import HALF_SCALE
from wsimil.stages.convert import TARGETS, ConvertOptions, ConvertSummary, convert
from wsimil.stages.features import open_features
from wsimil.stages.progress import Quiet
from wsimil.store import open_store
from wsimil.store.places import failures
from wsimil.testing.store_laws import make_bag

Make = Callable[..., Path]
LAYOUTS = ["clam", "trident", "stamp", "atlaspatch", "slide2vec"]
TO = [target for target in TARGETS if target != "wsimil"]


def run(source: Path, out: Path, **options: object) -> ConvertSummary:
    return convert(source, out, options=ConvertOptions(**options))  # type: ignore[arg-type]


def native(peers, layout: str, out: Path, *slide_ids: str, **options: object) -> Path:
    for slide_id in slide_ids or ("s",):
        folder = getattr(peers, layout)(slide_id)
    given = {"mpp": 0.25, "patches": peers.root / "clam" / "RESULTS", **options}
    assert not run(folder, out, **given).failures
    return out


# CLAM and STAMP do not state the size of a slide, which TRIDENT and SpatialData hold: see the test with slides.
PAIRS = [
    (layout, to)
    for layout in LAYOUTS
    for to in TO
    if not (layout in ("clam", "stamp") and to in ("trident", "spatialdata"))
]


@pytest.mark.parametrize(("layout", "to"), PAIRS)
def test_every_layout_becomes_every_other_and_comes_back(layout: str, to: str, peers, tmp_path: Path) -> None:
    first = native(peers, layout, tmp_path / "first")
    assert not run(first, tmp_path / "there", to=to, encoder="enc").failures
    assert not run(tmp_path / "there", tmp_path / "back", mpp=0.25).failures
    one, two = (open_store(tmp_path / name, mode="r").read("s") for name in ("first", "back"))
    np.testing.assert_array_equal(two.features, one.features)
    np.testing.assert_array_equal(two.grid.xy0, one.grid.xy0)
    assert two.grid.size0 == pytest.approx(one.grid.size0, abs=1e-9)
    assert two.grid.slide.mpp == 0.25
    if to != "clam":  # which knows px as they were read, not as they were asked
        assert two.grid.spec.size_px == one.grid.spec.size_px
        assert two.provenance.encoder["name"] == (one.provenance.encoder["name"] or "enc")


@pytest.mark.parametrize("to", TO)
def test_bags_of_ours_come_back_as_they_were(to: str, tmp_path: Path) -> None:
    """Of another resolution than one of level 0, with a side that is no whole number of px, and overlap."""
    bag = make_bag("slide 1", n=63)
    open_store(tmp_path / "ours", mode="w").write(bag)
    assert not run(tmp_path / "ours", tmp_path / "there", to=to).failures
    assert not run(tmp_path / "there", tmp_path / "back", mpp=bag.grid.slide.mpp).failures
    back = open_store(tmp_path / "back", mode="r").read("slide 1")
    np.testing.assert_array_equal(back.features, bag.features)
    np.testing.assert_array_equal(back.grid.xy0, bag.grid.xy0)
    # TRIDENT and CLAM keep whole px: half of one is what may be lost.
    allowed = 0.5 if to in ("clam", "trident") else 1e-4
    assert back.grid.size0 == pytest.approx(bag.grid.size0, abs=allowed)


def test_a_conversion_that_names_the_encoder_is_another_one(peers, tmp_path: Path) -> None:
    folder, given = peers.clam("s"), {"mpp": 0.25, "patches": peers.root / "clam" / "RESULTS"}
    for encoder, done in ((None, 1), ("enc", 1), ("enc", 0)):
        assert run(folder, tmp_path / "out", encoder=encoder, **given).count("done") == done
        assert open_store(tmp_path / "out", mode="r").header("s").provenance.encoder["name"] == encoder


def test_patches_that_were_replaced_are_converted_anew(peers, tmp_path: Path) -> None:
    folder, given = peers.clam("s"), {"mpp": 0.25, "patches": peers.root / "clam" / "RESULTS"}
    for size in (64, 128):
        peers.clam_patches("s", size=size)
        assert [run(folder, tmp_path / "out", **given).count("done") for _ in range(2)] == [1, 0]
        assert open_store(tmp_path / "out", mode="r").read("s").grid.size0 == 4 * size


def test_what_lies_on_a_slide_that_was_replaced_is_converted_anew(peers, make_slide: Make, tmp_path: Path) -> None:
    folder = peers.trident("s")
    for mpp in (0.25, 0.5):
        make_slide(tmp_path / "slides/s.tiff", size_px=(2000, 1500), mpp=mpp)
        assert [run(folder, tmp_path / "out", slides=tmp_path / "slides").count("done") for _ in range(2)] == [1, 0]
        assert open_store(tmp_path / "out", mode="r").read("s").grid.slide.mpp == pytest.approx(mpp)


def test_rows_of_a_spatialdata_table_are_of_the_tiles_that_they_name(peers, tmp_path: Path) -> None:
    """Tables of AnnData are sorted and filtered at will; a slide is told by height and width there."""
    ours = native(peers, "trident", tmp_path / "ours")
    run(ours, tmp_path / "there", to="spatialdata")
    bag = open_store(ours, mode="r").read("s")
    table = zarr.open_group(tmp_path / "there/s.zarr/tables/uni_v1_tiles", mode="r+")
    order = np.random.default_rng(0).permutation(len(bag))
    table["X"][...] = table["X"][...][order]
    table["obs/tile_id"][...] = order
    assert not run(tmp_path / "there", tmp_path / "back").failures
    back = open_store(tmp_path / "back", mode="r").read("s")
    np.testing.assert_array_equal(back.features, bag.features)
    np.testing.assert_array_equal(back.grid.xy0, bag.grid.xy0)
    assert back.grid.slide.size0_px == bag.grid.slide.size0_px == (2000, 1500)


@pytest.mark.parametrize(("vendor", "half_scale"), [("aperio", True), ("dicom", False), ("ome-tiff", False)])
def test_levels_that_openslide_may_not_count_are_not_told_as_those_of_the_file(
    vendor: str, half_scale: bool, tmp_path: Path
) -> None:
    """CLAM read its level 1 of 1:4, twice as wide, for a level of 1:2 that only half-scale JPEG has, or that comes later."""
    bag = make_bag("s")
    slide = replace(bag.grid.slide, level_downsamples=(1.0, 2.0, 4.0), vendor=vendor)
    grid = replace(bag.grid, slide=slide, read_level=1, read_px=bag.grid.size0_px // 2)
    tiling = {**bag.provenance.tiling, **({"resampling": f"{HALF_SCALE}bilinear"} if half_scale else {})}
    bag = replace(bag, grid=grid, provenance=replace(bag.provenance, tiling=tiling))
    open_store(tmp_path / "ours", mode="w").write(bag)
    for to in ("clam", "spatialdata"):
        assert not run(tmp_path / "ours", tmp_path / to, to=to).failures
    with h5py.File(tmp_path / "clam/patches/s.h5") as file:
        facts = file["coords"].attrs
        assert (facts["patch_size"], facts["patch_level"], facts["downsample"].tolist()) == (grid.size0_px, 0, [1, 1])
    properties = json.loads((tmp_path / "spatialdata/s.zarr/zarr.json").read_text())["attributes"]["slide_properties"]
    assert (properties["n_level"], properties["level_downsample"]) == (1, [1.0])


def test_the_files_are_those_of_the_layouts(peers, tmp_path: Path) -> None:
    """Types, names and attributes that the tools' own readers look for."""
    ours = native(peers, "trident", tmp_path / "ours")
    for to in TO:
        run(ours, tmp_path / to, to=to)
    tensor = torch.load(tmp_path / "clam/pt_files/s.pt", weights_only=True)
    assert (tensor.dtype, tuple(tensor.shape)) == (torch.float32, (20, 6))
    with h5py.File(tmp_path / "clam/h5_files/s.h5") as file:
        assert (file["features"].dtype, file["coords"].dtype) == (np.float32, np.int32)
    with h5py.File(tmp_path / "clam/patches/s.h5") as file:
        facts = file["coords"].attrs
        assert (facts["patch_size"], facts["patch_level"], facts["downsample"].tolist()) == (256, 0, [1.0, 1.0])
    with h5py.File(tmp_path / "trident/features_uni_v1/s.h5") as file:
        facts = file["coords"].attrs
        assert facts["patch_size_level0"].dtype.kind == facts["patch_size"].dtype.kind == "i"
        assert (facts["patch_size_level0"], facts["patch_size"], facts["overlap"]) == (256, 128, 0)
        assert (facts["level0_width"], facts["level0_height"]) == (2000, 1500)
        assert file["features"].attrs["encoder"] == "uni_v1"
    assert (tmp_path / "trident/patches/s_patches.h5").is_file()
    with h5py.File(tmp_path / "stamp/s.h5", swmr=True, libver="latest") as file:  # as STAMP opens it
        assert isinstance(file.get("feats", getlink=True), h5py.ExternalLink)
        assert (file["coords"].dtype, file.attrs["unit"], file.attrs["feat_type"]) == (np.float32, "um", "tile")
        assert file.attrs["tile_size_um"] == 64
        np.testing.assert_array_equal(file["coords"][:] * 4, open_store(ours, mode="r").read("s").grid.xy0)


def test_links_of_stamp_are_relative_and_moved_together(peers, tmp_path: Path) -> None:
    ours = native(peers, "trident", tmp_path / "a" / "ours")
    notes = run(ours, tmp_path / "a" / "stamp", to="stamp").notes
    assert any("keep both folders where they are" in note for note in notes)
    (tmp_path / "a").rename(tmp_path / "b")
    assert len(open_features(tmp_path / "b" / "stamp").read_features("s")) == 20
    (tmp_path / "b" / "ours" / "s.h5").unlink()
    with pytest.raises(StoreError, match="cannot be read"):
        open_features(tmp_path / "b" / "stamp").read_features("s")


def test_what_stands_in_zarr_is_copied_into_stamp(tmp_path: Path) -> None:
    open_store(tmp_path / "ours", mode="w", backend="zarr").write(make_bag("s"))
    assert run(tmp_path / "ours", tmp_path / "stamp", to="stamp").notes == ()
    with h5py.File(tmp_path / "stamp/s.h5") as file:
        np.testing.assert_array_equal(file["feats"][:], make_bag("s").features)


def test_a_tool_to_another_needs_no_more_than_that_one_holds(peers, tmp_path: Path) -> None:
    """CLAM's training on TRIDENT's features: nobody has to say µm per pixel for that."""
    assert not run(peers.trident("s"), tmp_path / "clam", to="clam").failures
    (failure,) = run(peers.trident("s"), tmp_path / "stamp", to="stamp").failures
    assert "do not state µm per pixel; give --mpp, or --slides" in failure.reason
    known = {"mpp": 0.25, "patches": peers.root / "clam/RESULTS"}
    (failure,) = run(peers.clam("s"), tmp_path / "t", to="trident", encoder="x", **known).failures
    assert "how large the slide is; give --slides" in failure.reason
    (failure,) = run(peers.clam("s"), tmp_path / "u", to="stamp", **known).failures
    assert "do not state their encoder; name it with --encoder" in failure.reason


def test_slides_give_what_files_do_not_state(peers, make_slide: Make, tmp_path: Path) -> None:
    make_slide(tmp_path / "slides/s.tiff", size_px=(2000, 1500), mpp=0.25)
    for layout in LAYOUTS:
        options = {"slides": tmp_path / "slides", "patches": peers.root / "clam/RESULTS"}
        ours = tmp_path / layout
        assert not run(getattr(peers, layout)("s"), ours, **options).failures
        bag = open_store(ours, mode="r").read("s")
        assert bag.grid.slide.mpp == pytest.approx(0.25)
        assert bag.grid.slide.digest
        assert bag.provenance.slide["bounds_known"] is True
        for to in ("trident", "spatialdata"):
            assert not run(ours, tmp_path / f"{layout}-{to}", to=to, encoder="enc").failures


def test_a_manifest_gives_each_slide_its_own_mpp(peers, make_slide: Make, tmp_path: Path) -> None:
    make_slide(tmp_path / "a.tiff", size_px=(2000, 1500), mpp=0.5)
    for slide_id in ("a", "b", "c"):
        folder = peers.stamp(slide_id)
    manifest = tmp_path / "slides.csv"
    manifest.write_text("path,mpp\na.tiff,\nb.tiff,0.5\n", encoding="utf-8")  # b is elsewhere
    summary = run(folder, tmp_path / "out", slides=manifest, mpp=0.25)
    assert not summary.failures
    assert any("1 slides are not in --slides: c" in note for note in summary.notes)
    store = open_store(tmp_path / "out", mode="r")
    got = {slide_id: store.read(slide_id).grid.slide.mpp for slide_id in "abc"}
    assert got == {"a": 0.25, "b": 0.5, "c": 0.25}
    assert store.header("b").provenance.slide["mpp_detail"] == "manifest"


def test_provenance_says_what_is_known_and_what_is_not(peers, tmp_path: Path) -> None:
    ours = native(peers, "stamp", tmp_path / "ours")
    provenance = open_store(ours, mode="r").header("s").provenance
    assert provenance.encoder == {
        "name": "uni", "dim": 6, "pooling": None, "transform": None, "weights_sha256": None, "stated_by": "stamp",
    }  # fmt: skip
    assert provenance.tiling == {"size_um": 64.0, "size_px": 224, "stated_by": "stamp"}
    source = peers.root / "stamp/uni-0123abcd/s.h5"
    assert provenance.pixels == {
        "layout": "stamp", "layout_version": "2.5.0", "dtype": "float16",
        "source_sha256": hashlib.sha256(source.read_bytes()).hexdigest(),
    }  # fmt: skip
    assert provenance.slide["mpp_detail"] == "--mpp"
    assert provenance.slide["slide_was_read"] is False


def test_tiles_of_different_width_are_told(peers, tmp_path: Path) -> None:
    peers.trident("a")
    folder = peers.trident("b", size0=300)
    summary = run(folder, tmp_path / "out", mpp=0.25)
    assert any("64 µm wide on one slide and 75 µm on another" in note for note in summary.notes)


def test_an_encoder_without_a_name_is_told_and_can_be_named(peers, tmp_path: Path) -> None:
    folder = peers.clam("s")
    options = {"mpp": 0.25, "patches": peers.root / "clam/RESULTS"}
    assert any("--encoder NAME" in note for note in run(folder, tmp_path / "a", **options).notes)
    assert run(folder, tmp_path / "b", encoder="resnet50_trunc", **options).notes == ()
    assert open_store(tmp_path / "b", mode="r").header("s").provenance.encoder["name"] == "resnet50_trunc"


def times(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("to", TARGETS)
def test_a_rerun_writes_nothing(to: str, peers, tmp_path: Path) -> None:
    for slide_id in ("a", "b"):
        folder = peers.trident(slide_id)
    options = {"to": to, "mpp": 0.25}
    assert run(folder, tmp_path / "out", **options).count("done") == 2
    before = times(tmp_path / "out")
    assert run(folder, tmp_path / "out", **options).count("skipped") == 2
    assert times(tmp_path / "out") == before


def test_a_rerun_does_what_changed_or_is_missing(peers, tmp_path: Path) -> None:
    for slide_id in ("a", "b", "c"):
        folder = peers.trident(slide_id)
    out = tmp_path / "out"
    run(folder, out, mpp=0.25)
    (out / "a.h5").unlink()
    os.utime(folder / "b.h5", ns=(1, 1))
    assert {s.slide_id: s.status for s in run(folder, out, mpp=0.25).slides} == {
        "a": "done", "b": "done", "c": "skipped",
    }  # fmt: skip
    assert run(folder, out, mpp=0.5).count("done") == 3
    write_text(out / "convert.jsonl", (out / "convert.jsonl").read_text()[:-20])  # a line that a crash cut short
    assert run(folder, out, mpp=0.5).count("done") == 1


def test_one_bad_slide_stops_nobody_and_is_listed(peers, tmp_path: Path) -> None:
    for slide_id in ("a", "b", "c"):
        folder = peers.trident(slide_id)
    (folder / "b.h5").write_bytes((folder / "b.h5").read_bytes()[:700])
    for to in TARGETS:
        out = tmp_path / to
        summary = run(folder, out, to=to, mpp=0.25)
        assert [slide.status for slide in summary.slides] == ["done", "failed", "done"]
        (row,) = csv.DictReader((out / "failures.csv").read_text().splitlines())
        assert row["slide_id"] == "b"
        assert "cannot be read" in row["reason"]
        assert not [name for name in times(out) if Path(name).stem.startswith(("b", ".b"))]
    peers.trident("b")
    assert not run(folder, tmp_path / "wsimil", mpp=0.25).failures
    assert not (tmp_path / "wsimil/failures.csv").exists()


def test_slides_that_failed_stay_listed_when_others_are_converted(peers, tmp_path: Path) -> None:
    """A second conversion erased them, and `predict` and `evaluate` no longer knew of any failure."""
    for slide_id in ("a", "b"):
        folder = peers.trident(slide_id)
    out, whole = tmp_path / "out", (folder / "a.h5").read_bytes()
    (folder / "a.h5").write_bytes(whole[:700])
    (reason,) = (failure.reason for failure in run(folder, out, mpp=0.25).failures)
    (folder / "a.h5").unlink()
    for _ in range(2):
        assert not run(folder, out, mpp=0.25).failures
        assert failures(out) == {"a": reason}
    (folder / "a.h5").write_bytes(whole)
    run(folder, out, mpp=0.25)
    assert not (out / "failures.csv").exists()


def test_slides_that_failed_stay_listed_where_a_conversion_is_interrupted(peers, tmp_path: Path) -> None:
    for slide_id in ("a", "b"):
        folder = peers.trident(slide_id)
    out = tmp_path / "out"
    (folder / "b.h5").write_bytes((folder / "b.h5").read_bytes()[:700])
    (reason,) = (failure.reason for failure in run(folder, out, mpp=0.25).failures)

    class Interrupted(Quiet):
        def begin(self, what: str, total: int) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(folder, out, options=ConvertOptions(mpp=0.25), reporter=Interrupted())
    assert failures(out) == {"b": reason}


def test_failures_of_a_prediction_are_kept(peers, tmp_path: Path) -> None:
    folder, out = peers.trident("a"), tmp_path / "predictions"
    out.mkdir()
    for name in ("predictions.json", "failures.csv"):
        (out / name).write_text("slide_id,reason\na,broken\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"holds predictions\.json"):
        run(folder, out, mpp=0.25)
    assert (out / "failures.csv").is_file()


def test_what_has_no_effect_is_refused(peers, tmp_path: Path) -> None:
    ours = native(peers, "trident", tmp_path / "ours")
    with pytest.raises(ConfigError, match="holds features of wsimil already"):
        run(ours, tmp_path / "o")
    with pytest.raises(ConfigError, match="--slides and --mpp are for features of other tools"):
        run(ours, tmp_path / "o", to="clam", mpp=0.5)
    with pytest.raises(ConfigError, match="is also what is converted"):
        run(ours, ours, to="clam")
    with pytest.raises(ConfigError, match="--mpp 0: wanted"):
        run(peers.trident("s"), tmp_path / "o", mpp=0)
    assert not (tmp_path / "o").exists()


def command(*arguments: str | Path) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["convert", *map(str, arguments)], terminal_width=80)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


def test_the_command_says_how_it_went_and_exits_with_it(peers, tmp_path: Path) -> None:
    folder = peers.trident("a")
    code, out, err = command(folder, tmp_path / "out", "--mpp", "0.25")
    assert code == 0
    assert "trident to wsimil: 1 slides done, 0 complete already, 0 failed" in out
    assert "[1/1] a: 20 tiles" in err
    code, out, _ = command(folder, tmp_path / "more", "--json", "-q")
    assert code == 1
    assert "give --mpp" in json.loads(out)["failures"]["a"]
    code, _, err = command(folder, tmp_path / "out", "--to", "tridnet")
    assert code == 2
    assert "wanted one of wsimil, clam, trident, stamp, spatialdata" in err
