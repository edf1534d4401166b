"""Slides become feature files: all of them, whole, once, and a bad slide never stops the rest."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch

from tests.stages.notes import Notes
from wsimil.config import load_config
from wsimil.encoders import build_encoder
from wsimil.errors import ConfigError, ModelError, OutputError, StoreError
from wsimil.extraction.config import ExtractConfig, config_from_provenance
from wsimil.extraction.embedding import resample
from wsimil.extraction.sources import Shard, list_sources
from wsimil.quality.measure import measure
from wsimil.slides import open_slide, openslide
from wsimil.slides.pyramid import mean_downsample
from wsimil.stages.extract import ExtractSummary, encoders_and_spec, extract
from wsimil.stages.failures import FailedSlides, listed, not_among, write_failures
from wsimil.stages.plan_extraction import ExtractPlan, plan
from wsimil.stages.progress import Quiet
from wsimil.store import open_store
from wsimil.store.places import FailureRow, failures

Make = Callable[..., Path]


def run(slides: Path, out: Path, *, shard: Shard | None = None, **given: object) -> ExtractSummary:
    config = load_config(ExtractConfig, given={"device": "cpu", **given})  # type: ignore[dict-item]
    return extract(config, list_sources(slides), out, shard=shard)


def planned(slides: Path, out: Path, **given: object) -> ExtractPlan:
    config = load_config(ExtractConfig, given={"device": "cpu", **given})  # type: ignore[dict-item]
    return plan(config, list_sources(slides), out)


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory, make_slide: Make) -> Path:
    folder = tmp_path_factory.mktemp("slides")
    for index in range(3):
        make_slide(folder / f"s{index}.tiff", seed=index, size_px=(1024, 700 + 100 * index))
    return folder


@pytest.fixture(scope="module")
def features(slides: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("features")
    assert run(slides, out).count("done") == 3
    return out


def test_every_row_is_the_encoder_on_its_own_tile(slides: Path, features: Path) -> None:
    bag = open_store(features, mode="r").read("s1")
    encoder = build_encoder("efficientnet_lite0_trunc")
    with open_slide(slides / "s1.tiff") as slide:
        assert len(bag) > 5
        for row in (0, 3, len(bag) - 1):
            tile = torch.from_numpy(slide.read_tiles(bag.grid, [row]))
            alone = encoder.embed(resample(tile, bag.grid.spec.size_px)).numpy()[0]
            np.testing.assert_allclose(bag.features[row].astype(np.float32), alone, rtol=2e-3, atol=2e-3)


def test_features_do_not_depend_on_batches_or_threads(slides: Path, features: Path, tmp_path: Path) -> None:
    run(slides, tmp_path, batch_size=5, readers=4)
    ours, theirs = open_store(tmp_path, mode="r"), open_store(features, mode="r")
    for slide_id in ("s0", "s1", "s2"):
        one, two = ours.read(slide_id), theirs.read(slide_id)
        assert np.array_equal(one.grid.xy0, two.grid.xy0)
        np.testing.assert_allclose(
            one.features.astype(np.float32), two.features.astype(np.float32), rtol=2e-3, atol=2e-3
        )


def test_a_rerun_writes_nothing(slides: Path, features: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in features.glob("*.h5")}
    assert run(slides, features).count("skipped") == 3
    assert {path: path.stat().st_mtime_ns for path in features.glob("*.h5")} == before


@pytest.mark.parametrize(
    "change",
    [
        {"tile.min_tissue": 0.9},
        {"tile.tile_um": 112.0},
        {"dtype": "float32"},
        {"mpp_override": 0.52},
        {"precision": "bf16"},
        {"tissue.min_tissue_um2": 9_000.0},
    ],
)
def test_a_changed_recipe_is_made_anew(slides: Path, features: Path, tmp_path: Path, change: dict[str, object]) -> None:
    (tmp_path / "s0.h5").write_bytes((features / "s0.h5").read_bytes())
    summary = run(slides / "s0.tiff", tmp_path, **change)
    assert summary.count("done") == 1
    assert (
        open_store(tmp_path, mode="r").header("s0").provenance.digest
        != open_store(features, mode="r").header("s0").provenance.digest
    )


def test_features_of_two_kinds_come_into_no_folder(make_slide: Make, tmp_path: Path) -> None:
    first, second, out = (tmp_path / name for name in ("first", "second", "features"))
    make_slide(first / "a.tiff")
    make_slide(second / "b.tiff", seed=1)
    run(first, out)
    says = r"features of 1 slide that would stay as they are, as 'a', of another kind .*tiling\.mpp: .* != 0\.5;"
    for verb in (run, planned):
        with pytest.raises(ConfigError, match=says):
            verb(second, out, **{"tile.tile_um": 112.0})
    assert open_store(out, mode="r").ids() == ["a"]
    assert "112" not in (out / "config.yaml").read_text(encoding="utf-8")
    run(second, out, **{"tissue.min_tissue_um2": 9_000.0})
    both = tmp_path / "both"
    both.mkdir()
    for slide in (first / "a.tiff", second / "b.tiff"):
        (both / slide.name).symlink_to(slide)
    assert run(both, out, **{"tile.tile_um": 112.0}).count("done") == 2


def test_a_changed_slide_is_made_anew(make_slide: Make, tmp_path: Path) -> None:
    make_slide(tmp_path / "in/a.tiff", seed=1)
    assert run(tmp_path / "in", tmp_path / "out").count("done") == 1
    make_slide(tmp_path / "in/a.tiff", seed=2)
    assert run(tmp_path / "in", tmp_path / "out").count("done") == 1


@pytest.mark.parametrize("damage", [b"", b"not a feature file", None])
def test_a_broken_or_foreign_feature_file_is_made_anew(
    slides: Path, features: Path, tmp_path: Path, damage: bytes | None
) -> None:
    whole = (features / "s0.h5").read_bytes()
    (tmp_path / "s0.h5").write_bytes(whole[: len(whole) // 2] if damage is None else damage)
    assert run(slides / "s0.tiff", tmp_path).count("done") == 1
    assert len(open_store(tmp_path, mode="r").read("s0")) > 5


def test_bad_slides_are_recorded_and_the_run_goes_on(slides: Path, make_slide: Make, tmp_path: Path) -> None:
    good = (slides / "s0.tiff").read_bytes()
    folder = tmp_path / "in"
    make_slide(folder / "no_mpp.tiff", mpp=None)
    make_slide(folder / "glass.tiff", tissue=False)
    make_slide(folder / "tiny.tiff", size_px=(16, 16))
    (folder / "text.svs").write_text("not a slide")
    (folder / "cut.tiff").write_bytes(good[: len(good) // 3])
    (folder / "empty.tiff").write_bytes(b"")
    (folder / "x").mkdir()
    for place in ("x/twice.tiff", "twice.svs"):
        (folder / place).write_bytes(good)
    (folder / "zz_good.tiff").write_bytes(good)
    out = tmp_path / "out"
    summary = run(folder, out)
    states = {o.slide_id: o.status for o in summary.outcomes}
    assert states == {
        "cut": "failed", "empty": "failed", "glass": "done", "no_mpp": "failed", "text": "failed", "tiny": "done",
        "twice": "failed", "zz_good": "done",
    }  # fmt: skip
    rows = {
        row["slide_id"]: row for row in csv.DictReader((out / "failures.csv").read_text(encoding="utf-8").splitlines())
    }
    assert set(rows) == {name for name, state in states.items() if state == "failed"}
    assert "no mpp" in rows["no_mpp"]["reason"]
    assert "--mpp-override" in rows["no_mpp"]["reason"]
    assert "names 2 files" in rows["twice"]["reason"]
    store = open_store(out, mode="r")
    assert store.ids() == ["glass", "tiny", "zz_good"]
    assert len(store.read("glass")) == len(store.read("tiny")) == 0
    assert store.read("glass").dim == 320
    lines = [json.loads(line) for line in (out / "extract.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(lines) == len(summary.outcomes)
    assert not any(line["trace"] for line in lines)


@pytest.mark.shared
def test_a_slide_that_fails_mid_read_fails_alone(shared_dir: Path, tmp_path: Path) -> None:
    summary = run(shared_dir / "data/slides/edge/unreadable.svs", tmp_path)
    assert [o.status for o in summary.outcomes] == ["failed"]
    assert "level-0 x=" in summary.outcomes[0].reason
    assert list(tmp_path.glob("*.h5")) == []


@pytest.mark.parametrize("name", ["model.json", "predictions.json", "study.json"])
def test_a_folder_of_results_takes_no_features(name: str, slides: Path, tmp_path: Path) -> None:
    for file in (name, "failures.csv", "config.yaml"):
        (tmp_path / file).write_text("of the results", encoding="utf-8")
    with pytest.raises(ConfigError, match=rf"holds {name}: features replace"):
        run(slides, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {name, "failures.csv", "config.yaml"}
    assert (tmp_path / "config.yaml").read_text(encoding="utf-8") == "of the results"


def test_mended_slides_leave_no_failure_behind(slides: Path, make_slide: Make, tmp_path: Path) -> None:
    make_slide(tmp_path / "in/a.tiff", mpp=None)
    assert run(tmp_path / "in", tmp_path / "out").count("failed") == 1
    assert run(tmp_path / "in", tmp_path / "out", mpp_override=0.5).count("done") == 1
    assert not (tmp_path / "out/failures.csv").exists()


def test_slides_that_failed_stay_listed_when_others_are_extracted(make_slide: Make, tmp_path: Path) -> None:
    """A second batch erased them, and `predict` and `evaluate` no longer knew of any failure."""
    out, first, second = tmp_path / "out", tmp_path / "first", tmp_path / "second"
    make_slide(first / "a.tiff", mpp=None)
    make_slide(first / "b.tiff", mpp=None)
    make_slide(second / "c.tiff")
    reasons = {failure.slide_id: failure.reason for failure in run(first, out).failures}
    assert set(reasons) == {"a", "b"}
    for shard in (None, Shard(index=1, count=2), Shard(index=2, count=2), None):
        assert not run(second, out, shard=shard).failures
        assert failures(out) == reasons
    make_slide(second / "b.tiff")
    run(second, out)
    assert failures(out) == {"a": reasons["a"]}
    run(first, out, mpp_override=0.5)
    assert not list(out.glob("failures*"))


class Interrupted(Quiet):
    """A person who presses Ctrl-C before the first slide is through."""

    def begin(self, what: str, total: int) -> None:
        raise KeyboardInterrupt


@pytest.mark.parametrize("shard", [None, Shard(index=1, count=1)])
def test_slides_that_failed_stay_listed_until_they_are_tried_again(
    make_slide: Make, tmp_path: Path, shard: Shard | None
) -> None:
    """A run that was interrupted before it came to them had erased them."""
    out = tmp_path / "out"
    for name in ("a", "b"):
        make_slide(tmp_path / f"in/{name}.tiff", mpp=None, size_px=(256, 256))
    reasons = {failure.slide_id: failure.reason for failure in run(tmp_path / "in", out).failures}
    make_slide(tmp_path / "in/a.tiff", size_px=(256, 256))
    config, sources = load_config(ExtractConfig, given={"device": "cpu"}), list_sources(tmp_path / "in")
    with pytest.raises(KeyboardInterrupt):
        extract(config, sources, out, shard=shard, reporter=Interrupted())
    assert failures(out) == reasons
    assert run(tmp_path / "in", out, shard=shard).failures
    assert failures(out) == {"b": reasons["b"]}


def test_a_shard_leaves_what_another_one_is_to_try_listed(make_slide: Make, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for name in ("a", "b"):
        make_slide(tmp_path / f"in/{name}.tiff", mpp=None, size_px=(256, 256))
    run(tmp_path / "in", out)
    for index, left in ((1, {"b"}), (2, set())):
        run(tmp_path / "in", out, shard=Shard(index=index, count=2), mpp_override=0.5)
        assert set(failures(out)) == left
    assert not list(out.glob("failures*"))


def test_whoever_took_away_a_slide_that_failed_is_told_how_it_leaves_the_list(make_slide: Make, tmp_path: Path) -> None:
    notes = Notes()
    out, config = tmp_path / "out", load_config(ExtractConfig, given={"device": "cpu"})
    for name in ("a", "b"):
        make_slide(tmp_path / f"in/{name}.tiff", mpp=None, size_px=(512, 512))
    run(tmp_path / "in", out)
    (tmp_path / "in/a.tiff").unlink()
    extract(config, list_sources(tmp_path / "in"), out, reporter=notes)
    assert [
        note
        for note in notes.said
        if f"1 slides failed in earlier runs and are not among these: they stay in {out}" in note
    ]
    assert "remove the lines of those that are meant to be gone" in notes.said[-1]
    lines = (out / "failures.csv").read_text(encoding="utf-8").splitlines()
    (out / "failures.csv").write_text(
        "\n".join(line for line in lines if not line.startswith("a,")) + "\n", encoding="utf-8"
    )
    notes.said.clear()
    extract(config, list_sources(tmp_path / "in"), out, reporter=notes)
    assert not notes.said
    assert set(failures(out)) == {"b"}


@pytest.mark.parametrize("delimiter", [",", ";", "\t"], ids=["comma", "semicolon", "tab"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_slides_stay_listed_where_a_spreadsheet_saved_the_list(tmp_path: Path, delimiter: str, encoding: str) -> None:
    """Whoever removed a line with one had no failed slide any more: their earlier features passed for current ones."""
    rows = [FailureRow("a", "in/a.svs", "read", "cut short; in\nall"), FailureRow(" b", "in/ b.svs", "name", "x, y")]
    write_failures(tmp_path / "failures.csv", rows)
    read = csv.reader((tmp_path / "failures.csv").read_text(encoding="utf-8").splitlines(keepends=True))
    saved = io.StringIO()
    csv.writer(saved, delimiter=delimiter).writerows(read)
    (tmp_path / "failures.csv").write_bytes(saved.getvalue().encode(encoding))
    assert failures(tmp_path) == {"a": "cut short; in\nall", " b": "x, y"}
    assert not_among(listed([tmp_path / "failures.csv"]), ["a"]) == rows[1:]


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ("slide_id,path,step,reason\na,a.svs,read,zerstört\n".encode("latin-1"), "save it as CSV in UTF-8"),
        (
            b"a,a.svs,read,cut short\n",
            "wanted a column slide_id, got a, a.svs, read, cut short; give it back its first line",
        ),
        (b"slide_id,path,step,reason\na,a.svs\n", "line 2: wanted 4 values"),
    ],
)
def test_a_list_of_failed_slides_that_cannot_be_read_is_refused(tmp_path: Path, data: bytes, expected: str) -> None:
    (tmp_path / "failures.1-of-2.csv").write_bytes(data)
    with pytest.raises(StoreError, match=expected):
        failures(tmp_path)
    (tmp_path / "failures.1-of-2.csv").write_bytes(b"")
    assert failures(tmp_path) == {}


def test_shards_together_make_the_whole(slides: Path, features: Path, tmp_path: Path) -> None:
    for index in (1, 2):
        run(slides, tmp_path, shard=Shard(index=index, count=2))
    assert open_store(tmp_path, mode="r").ids() == open_store(features, mode="r").ids()
    assert (tmp_path / "extract.1-of-2.jsonl").is_file()
    assert (tmp_path / "extract.2-of-2.jsonl").is_file()


def test_both_stores_hold_the_same(slides: Path, features: Path, tmp_path: Path) -> None:
    run(slides, tmp_path, store="zarr")
    one, two = open_store(tmp_path, mode="r").read("s0"), open_store(features, mode="r").read("s0")
    assert np.array_equal(one.features, two.features)
    assert one.provenance.digest == two.provenance.digest


def test_a_dry_run_writes_nothing_and_counts_right(slides: Path, features: Path, tmp_path: Path) -> None:
    config = load_config(ExtractConfig, given={"device": "cpu"})
    planned = plan(config, list_sources(slides), tmp_path / "absent")
    assert not (tmp_path / "absent").exists()
    store = open_store(features, mode="r")
    assert [s.tiles for s in planned.slides] == [store.header(s.slide_id).n for s in planned.slides]
    assert planned.tiles_per_s > 0
    for slide in planned.slides:
        assert slide.bytes_ == pytest.approx((features / f"{slide.slide_id}.h5").stat().st_size, rel=0.25)
    assert {s.status for s in plan(config, list_sources(slides), features).slides} == {"complete"}


def test_one_content_under_two_names_is_reported_also_on_a_rerun(make_slide: Make, tmp_path: Path) -> None:
    make_slide(tmp_path / "in/a.tiff", seed=1)
    make_slide(tmp_path / "in/c.tiff", seed=2)
    shutil.copy(tmp_path / "in/a.tiff", tmp_path / "in/b.tiff")
    for status in ("done", "skipped"):
        summary = run(tmp_path / "in", tmp_path / "out")
        assert summary.count(status) == 3  # type: ignore[arg-type]
        assert summary.duplicates == (("a", "b"),)


def test_the_reader_is_recorded_and_at_level_0_makes_no_difference(slides: Path, tmp_path: Path) -> None:
    bags = {}
    for reader in ("auto", "openslide"):
        run(slides / "s0.tiff", tmp_path / reader, slide_reader=reader)
        bags[reader] = open_store(tmp_path / reader, mode="r").read("s0")
    assert [bag.provenance.pixels["reader"] for bag in bags.values()] == ["tiff", "openslide"]
    assert np.array_equal(*(bag.features for bag in bags.values()))
    assert len({bag.provenance.feature_digest for bag in bags.values()}) == 1


def test_half_scale_makes_features_of_another_kind(slides: Path, tmp_path: Path) -> None:
    bags = {}
    for half in (False, True):
        run(slides / "s0.tiff", tmp_path / str(half), half_scale_jpeg=half, **{"tile.tile_um": 256.0})
        bags[half] = open_store(tmp_path / str(half), mode="r").read("s0")
    assert bags[False].grid.read_px == 2 * bags[True].grid.read_px
    assert bags[False].provenance.feature_digest != bags[True].provenance.feature_digest
    assert "half scale" in str(bags[True].provenance.tiling["resampling"])
    assert config_from_provenance(bags[True].provenance).half_scale_jpeg
    assert [bags[half].provenance.pixels.get("half_scale_version") for half in (False, True)] == [None, 3]


@pytest.mark.parametrize(
    ("rule", "before", "size", "level"),
    [
        ("level_downsample", mean_downsample, (127, 7200), (7, 450)),
        ("is_level", lambda *_, **__: True, (1000, 1400), (256, 352)),
    ],
    ids=["narrow", "padded"],
)
def test_a_rerun_makes_features_anew_of_whose_levels_an_earlier_version_had_another_word(
    rule: str, before: Callable[..., object], size: tuple[int, int], level: tuple[int, int], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    with tifffile.TiffWriter(tmp_path / "slide.tiff") as file:
        for number, (height, width) in enumerate((size, level)):
            file.write(
                np.full((height, width, 3), (200, 120, 180), np.uint8), photometric="rgb", tile=(64, 64), compression="zlib",
                metadata=None, subfiletype=int(number > 0), resolution=(20_000 / (size[0] // level[0]) ** number,) * 2,
                resolutionunit="CENTIMETER",
            )  # fmt: skip
    settings = {"tile.size_px": 56, "tile.mpp": 0.5}
    with monkeypatch.context() as earlier:
        earlier.setattr(openslide, rule, before)
        run(tmp_path / "slide.tiff", tmp_path / "out", **settings)
    told = open_store(tmp_path / "out", mode="r").header("slide").level_downsamples
    assert [one.status for one in planned(tmp_path / "slide.tiff", tmp_path / "out", **settings).slides] == ["to do"]
    assert run(tmp_path / "slide.tiff", tmp_path / "out", **settings).count("done") == 1
    assert open_store(tmp_path / "out", mode="r").header("slide").level_downsamples != told
    assert run(tmp_path / "slide.tiff", tmp_path / "out", **settings).count("skipped") == 1


def test_quality_is_measured_on_the_tiles_as_they_are_read(slides: Path, features: Path) -> None:
    bag = open_store(features, mode="r").read("s1")
    assert tuple(bag.quality) == ("sharpness", "pen", "dark", "background")
    with open_slide(slides / "s1.tiff") as slide:
        tiles = slide.read_tiles(bag.grid, np.arange(len(bag)))
    read_mpp = bag.grid.slide.mpp * bag.grid.slide.level_downsamples[bag.grid.read_level]
    for name, values in measure(tiles, mpp=read_mpp).by_name().items():
        assert np.array_equal(bag.quality[name], values)
    assert bag.quality["sharpness"].std() > 0


def test_tiles_beyond_a_limit_are_not_there_and_the_others_are_as_they_were(
    slides: Path, features: Path, tmp_path: Path
) -> None:
    whole = open_store(features, mode="r").read("s1")
    limit = float(np.median(whole.quality["background"]))
    summary = run(slides / "s1.tiff", tmp_path, **{"quality.max_background": limit})
    found = open_store(tmp_path, mode="r").read("s1")
    kept = whole.quality["background"] <= limit
    assert 0 < kept.sum() < len(kept)
    assert np.array_equal(found.grid.xy0, whole.grid.xy0[kept])
    assert np.array_equal(found.grid.tissue, whole.grid.tissue[kept])
    assert np.array_equal(found.quality["pen"], whole.quality["pen"][kept])
    np.testing.assert_allclose(
        found.features.astype(np.float32), whole.features[kept].astype(np.float32), rtol=2e-3, atol=2e-3
    )
    assert summary.outcomes[0].dropped == {"max_background": int((~kept).sum())}
    assert f"{int((~kept).sum())} beyond max_background" in str(summary.outcomes[0])
    assert found.provenance.tiling["quality"] == {"max_background": limit}
    assert found.provenance.feature_digest != whole.provenance.feature_digest
    assert (tmp_path / "quality/s1.jpg").stat().st_size > 1000
    line = json.loads((tmp_path / "extract.jsonl").read_text())
    assert line["dropped"] == {"max_background": int((~kept).sum())}
    assert run(slides / "s1.tiff", tmp_path, **{"quality.max_background": limit}).count("skipped") == 1


def test_a_slide_of_which_every_tile_is_dropped_is_an_empty_one(slides: Path, tmp_path: Path) -> None:
    assert run(slides / "s0.tiff", tmp_path, **{"quality.min_sharpness": 1e9}).count("done") == 1
    assert len(open_store(tmp_path, mode="r").read("s0")) == 0


def test_quality_that_is_not_measured_is_not_stored(slides: Path, tmp_path: Path) -> None:
    run(slides / "s0.tiff", tmp_path, **{"quality.measure": False})
    assert open_store(tmp_path, mode="r").read("s0").quality == {}


def test_several_devices_give_what_one_gives(slides: Path, features: Path, tmp_path: Path) -> None:
    run(slides, tmp_path, device="cpu,cpu")
    for slide_id in ("s0", "s1", "s2"):
        one, two = (open_store(folder, mode="r").read(slide_id) for folder in (tmp_path, features))
        assert one.provenance == two.provenance
        np.testing.assert_allclose(
            one.features.astype(np.float32), two.features.astype(np.float32), rtol=1e-3, atol=1e-4
        )


def test_features_of_another_recipe_than_a_model_needs_are_not_begun(
    slides: Path, features: Path, tmp_path: Path
) -> None:
    """They were made in full, and refused by the model then."""
    made = open_store(features, mode="r").header("s0").provenance
    config, sources = config_from_provenance(made).model_copy(update={"device": "cpu"}), list_sources(slides)[:1]
    said = r"recipe_version: 0 != 1; use wsimil 0\.0\.9, which made the model's features, or train on features that"
    with pytest.raises(ModelError, match=said):
        extract(config, sources, tmp_path / "out", wanted=replace(made, recipe_version=0, version="0.0.9"))
    assert not (tmp_path / "out").exists()
    assert not extract(config, sources, tmp_path / "out", wanted=made).failures


def test_a_profile_names_every_stage_and_slide(slides: Path, tmp_path: Path) -> None:
    config = load_config(ExtractConfig, given={"device": "cpu"})
    extract(config, list_sources(slides), tmp_path, profile=True)
    events = json.loads((tmp_path / "profile.json").read_text())["traceEvents"]
    assert {event["name"] for event in events if event["ph"] == "X"} == {"prepare", "read", "wait", "encode", "write"}
    for name in ("prepare", "write"):
        assert [e["args"]["slide"] for e in events if e["name"] == name] == ["s0", "s1", "s2"]


def test_an_output_place_that_is_a_file_is_refused(slides: Path, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("in the way")
    with pytest.raises(OutputError, match="a file stands where the output folder should be"):
        run(slides, tmp_path / "out")


@pytest.mark.skipif(sys.platform != "linux", reason="reads resident memory from /proc")
def test_memory_stays_flat_over_many_slides(tmp_path: Path, make_slide: Make) -> None:
    """A slide left open or a batch left alive would show: this slide's cached pixels alone take 6 MB."""
    first = make_slide(tmp_path / "slides/s0.tiff", size_px=(1536, 1200))
    for index in range(1, 20):
        shutil.copy(first, first.with_name(f"s{index}.tiff"))
    resident_mb = []

    class Watching(Quiet):
        def finish_item(self, line: str) -> None:
            assert " tiles" in line
            pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
            resident_mb.append(pages * os.sysconf("SC_PAGE_SIZE") / 1e6)

    config = load_config(ExtractConfig, given={"device": "cpu"})
    extract(config, list_sources(tmp_path / "slides"), tmp_path / "out", reporter=Watching())
    assert len(resident_mb) == 20
    assert resident_mb[-1] - resident_mb[4] < 30, resident_mb


def test_a_file_name_that_is_no_text_is_an_ordinary_slide_of_the_run(tmp_path: Path, make_slide: Make) -> None:
    make_slide(tmp_path / "in/good.tiff")
    odd = os.fsencode(tmp_path / "in") + b"/a\xff.tiff"
    Path(os.fsdecode(odd)).write_bytes(b"no slide")
    summary = run(tmp_path / "in", tmp_path / "out")
    assert (summary.count("done"), summary.count("failed")) == (1, 1)
    assert r"a\udcff" in (tmp_path / "out/failures.csv").read_text(encoding="utf-8")


def test_an_override_that_contradicts_a_slide_is_said(tmp_path: Path, make_slide: Make) -> None:
    notes = Notes()
    make_slide(tmp_path / "in/a.tiff", mpp=0.5)
    config = load_config(ExtractConfig, given={"device": "cpu", "mpp_override": 0.4})
    for stage in (plan, extract):
        stage(config, list_sources(tmp_path / "in"), tmp_path / "out", reporter=notes)
    assert len(notes.said) == 2
    assert "a: taken as 0.4 µm per pixel, override; metadata disagree: 0.5" in notes.said[0]


def test_a_precision_that_the_cpu_was_not_made_for_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    notes = Notes()
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda: "AVX2")
    encoders_and_spec(load_config(ExtractConfig, given={"device": "cpu", "precision": "bf16"}), notes)
    assert [text.partition(":")[0] for text in notes.said] == ["precision bf16"]


def test_a_folder_of_masks_that_is_not_there_is_refused(slides: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"masks: .* is not a folder"):
        run(slides, tmp_path / "out", masks=str(tmp_path / "typo"))
    assert not (tmp_path / "out").exists()


def drawn(path: Path, left: int, top: int, side: int) -> Path:
    """A square of tissue."""
    corners = [[left, top], [left + side, top], [left + side, top + side], [left, top + side], [left, top]]
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"type": "Polygon", "coordinates": [corners]}), encoding="utf-8")
    return path


def test_masks_of_a_folder_and_of_a_manifest_take_the_place_of_tissue_that_is_found(
    slides: Path, features: Path, tmp_path: Path
) -> None:
    drawn(tmp_path / "masks/s1.geojson", 256, 256, 256)
    drawn(tmp_path / "other.geojson", 512, 0, 256)
    manifest = tmp_path / "slides.csv"
    manifest.write_text(
        f"path,slide_id,mask\n{slides / 's0.tiff'},s0,\n{slides / 's1.tiff'},s1,\n{slides / 's1.tiff'},b,other.geojson\n",
        encoding="utf-8",
    )
    assert run(manifest, tmp_path / "out", masks=str(tmp_path / "masks")).count("done") == 3
    store = open_store(tmp_path / "out", mode="r")
    assert [store.read(name).grid.xy0.tolist() for name in ("s1", "b")] == [[[256, 256]], [[512, 0]]]
    found = open_store(features, mode="r").read("s0")
    np.testing.assert_array_equal(store.read("s0").grid.xy0, found.grid.xy0)
    assert store.header("s0").provenance.digest == found.provenance.digest


def test_a_mask_that_was_drawn_again_makes_features_anew(make_slide: Make, tmp_path: Path) -> None:
    make_slide(tmp_path / "in/a.tiff", size_px=(512, 512))
    masks, out = tmp_path / "masks", tmp_path / "out"
    for x, origin, done in ((0, None, 1), (0, None, 0), (256, None, 1), (256, "bounds", 1)):
        drawn(masks / "a.geojson", x, 0, 256)
        assert run(tmp_path / "in", out, masks=str(masks), mask_origin=origin).count("done") == done
        assert open_store(out, mode="r").read("a").grid.xy0.tolist() == [[x, 0]]


@pytest.mark.parametrize("name", ["s1.tiff.geojson", "s1.json", "s1.tiff.json"])
def test_a_mask_that_is_named_otherwise_is_not_passed_by(slides: Path, tmp_path: Path, name: str) -> None:
    """The tissue was found in place of what was drawn, and nothing said so."""
    drawn(tmp_path / "masks" / name, 256, 256, 256)
    summary = run(slides / "s1.tiff", tmp_path / "out", masks=str(tmp_path / "masks"))
    (failed,) = summary.failures
    assert f"{name} is not named for the slide; rename it s1.geojson" in failed.reason


def test_a_mask_that_is_named_for_the_file_of_a_slide_of_another_id_is_not_passed_by(
    slides: Path, tmp_path: Path
) -> None:
    drawn(tmp_path / "masks/s1.geojson", 256, 256, 256)
    # What only lies beside masks is none.
    (tmp_path / "masks/case2.json").write_text('{"stain": "HE"}', encoding="utf-8")
    manifest = tmp_path / "m.csv"
    manifest.write_text(f"path,slide_id\n{slides}/s1.tiff,case1\n{slides}/s2.tiff,case2\n", encoding="utf-8")
    summary = run(manifest, tmp_path / "out", masks=str(tmp_path / "masks"))
    (failed,) = summary.failures
    assert failed.slide_id == "case1"
    assert "s1.geojson is not named for the slide; rename it case1.geojson" in failed.reason


def test_a_failure_says_that_older_features_are_still_there(tmp_path: Path, make_slide: Make) -> None:
    path = make_slide(tmp_path / "in/a.tiff")
    run(tmp_path / "in", tmp_path / "out")
    path.write_bytes(b"no slide any more")
    (failure,) = run(tmp_path / "in", tmp_path / "out").failures
    assert "An older feature file of it is still there" in failure.reason


def test_lists_of_other_shards_lose_who_was_tried_and_keep_the_others(slides: Path, tmp_path: Path) -> None:
    """A slide more, and nearly all belong to another shard than before: who had failed was forgotten, or stayed for ever."""
    rows = [FailureRow(f"s{number}", f"in/s{number}.tiff", "open", "cut short") for number in range(3)]
    for table, listing in (
        ("failures.2-of-2.csv", rows),
        ("failures.1-of-3.csv", rows[:2]),
        ("failures.2-of-3.csv", []),
    ):
        write_failures(tmp_path / table, listing)
    (tmp_path / "failures.old.csv").write_text("what someone keeps", encoding="utf-8")
    for index, left in ((1, {"s1"}), (2, set())):  # s0 and s2, then s1
        assert not run(slides, tmp_path, shard=Shard(index=index, count=2)).failures
        assert set(failures(tmp_path)) == left
    assert {path.name for path in tmp_path.glob("failures*")} == {"failures.old.csv"}


def test_shards_that_write_one_list_at_once_lose_nothing(tmp_path: Path) -> None:
    """They read it, and wrote it without what they had tried, each with what the other had taken out."""
    names = [f"s{number}" for number in range(24)]
    write_failures(tmp_path / "failures.csv", [FailureRow(name, name, "open", "cut short") for name in names])

    def shard(index: int) -> None:
        with FailedSlides(tmp_path / f"failures.{index + 1}-of-6.csv") as failed:
            for name in names[index::6]:
                failed.tried(name, FailureRow(name, name, "open", "again") if name == "s7" else None)

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(shard, range(6)))
    assert failures(tmp_path) == {"s7": "again"}
    assert {path.name for path in tmp_path.iterdir()} == {"failures.2-of-6.csv"}


def test_links_to_folders_are_followed_once(tmp_path: Path, make_slide: Make) -> None:
    make_slide(tmp_path / "elsewhere/a.tiff")
    (tmp_path / "in").mkdir()
    (tmp_path / "in/linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere/loop").symlink_to(tmp_path / "in")
    assert [source.slide_id for source in list_sources(tmp_path / "in")] == ["a"]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 400 KiB: room for one slide or two, not for three."""
    folder = tmp_path / "disk"
    folder.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(folder)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"needs the right to mount a small disk: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_fills_up_ends_the_run_with_nothing_half_written(slides: Path, disk: Path) -> None:
    with pytest.raises(OutputError, match="the disk is full: free space"):
        run(slides, disk / "out", dtype="float32", thumbnail_px=8192, **{"tile.overlap": 0.8})
    assert [p for p in disk.rglob("*") if ".wsimil-tmp" in p.name] == []
    for path in disk.rglob("*.h5"):
        assert len(open_store(disk / "out", mode="r").read(path.stem)) > 0


def test_a_read_only_place_is_refused_before_any_work(slides: Path, disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    with pytest.raises(OutputError, match="the file system is read-only: choose another output folder"):
        run(slides, disk / "out")
    assert list(disk.iterdir()) == []


def test_the_live_display_works_on_a_terminal(slides: Path, tmp_path: Path) -> None:
    command = f"{sys.executable} -m wsimil extract {slides} -o {tmp_path / 'out'} --device cpu"
    words = ["script", "--quiet", "--return", "--command", command, "/dev/null"]
    done = subprocess.run(
        words, capture_output=True, text=True, check=False, env={**os.environ, "COLUMNS": "80", "TERM": "xterm"}
    )
    assert done.returncode == 0, done.stdout
    assert "Traceback" not in done.stdout
    assert "3 slides done" in done.stdout
    assert "s2: " in done.stdout


def test_an_absent_cuda_device_is_refused(slides: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"device 'cuda:99': this machine has \d+ CUDA devices"):
        run(slides, tmp_path, device="cuda:99")


_KILLED = """
import os, random, signal, sys, time
from pathlib import Path
from wsimil.config import load_config
from wsimil.extraction.config import ExtractConfig
from wsimil.extraction.sources import list_sources
from wsimil.stages.extract import extract

slides, out = Path(sys.argv[1]), Path(sys.argv[2])
rng = random.Random(int(sys.argv[3]))

def work(folder):
    child = os.fork()
    if child == 0:
        config = load_config(ExtractConfig, given={"device": "cpu", "batch_size": 4})
        extract(config, list_sources(slides), folder)
        os._exit(0)
    return child

began = time.monotonic()
os.waitpid(work(out / "reference"), 0)
whole = time.monotonic() - began
kills = 0
while kills < 22:
    child = work(out / "killed")
    time.sleep(rng.uniform(0.0, whole))
    os.kill(child, signal.SIGKILL)
    kills += os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    if all((out / "killed" / f"{s.slide_id}.h5").exists() for s in list_sources(slides)):
        for path in sorted((out / "killed").glob("*.h5"))[: rng.randint(1, 3)]:
            path.unlink()  # so that the next run has something to be killed in
assert os.waitstatus_to_exitcode(os.waitpid(work(out / "killed"), 0)[1]) == 0
"""


@pytest.mark.timeout(600)
def test_after_kill_9_at_22_random_moments_every_file_is_complete_and_equal(slides: Path, tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", _KILLED, str(slides), str(tmp_path), "20261"], check=True, timeout=580)
    ours, reference = open_store(tmp_path / "killed", mode="r"), open_store(tmp_path / "reference", mode="r")
    assert ours.ids() == reference.ids() == ["s0", "s1", "s2"]
    for slide_id in ours.ids():
        one, two = ours.read(slide_id), reference.read(slide_id)
        # A run that goes on puts other tiles together in a batch, which may turn the last bit of a float16.
        np.testing.assert_allclose(
            one.features.astype(np.float32), two.features.astype(np.float32), rtol=1e-3, atol=1e-4
        )
        assert one.grid.xy0.tobytes() == two.grid.xy0.tobytes()
        assert one.provenance == two.provenance
    leftovers = [p for p in (tmp_path / "killed").rglob("*") if ".wsimil-tmp" in p.name]
    assert leftovers == []


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_exits_with_130_and_a_rerun_goes_on(slides: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "wsimil", "extract", str(slides), "-o", str(tmp_path), "--device", "cpu"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stderr is not None
    line = process.stderr.readline()  # the first slide is done
    assert "[1/3] s0:" in line
    os.kill(process.pid, signal.SIGINT)
    _, rest = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted" in rest
    assert "Traceback" not in rest
    summary = run(slides, tmp_path)
    assert summary.count("failed") == 0
    assert summary.count("skipped") >= 1
    assert open_store(tmp_path, mode="r").ids() == ["s0", "s1", "s2"]
