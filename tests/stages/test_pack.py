"""wsimil pack: where it writes, what it says, and the same model and answers from a pack as from the folder."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from typer.testing import CliRunner

from wsimil.cli import app
from wsimil.config import load_config
from wsimil.errors import ConfigError, OutputError, StoreError
from wsimil.extraction.config import ExtractConfig
from wsimil.extraction.sources import list_sources
from wsimil.files import atomic_directory
from wsimil.stages.extract import extract
from wsimil.stages.pack import pack
from wsimil.stages.predict import predict
from wsimil.stages.predict_options import PredictOptions
from wsimil.stages.train import train
from wsimil.stages.train_config import TrainConfig
from wsimil.store import Backend, open_store
from wsimil.testing.store_laws import make_bag

Make = Callable[..., Path]


@pytest.fixture
def features(tmp_path: Path) -> Path:
    store = open_store(tmp_path / "features", mode="w")
    for seed, n in enumerate((63, 0, 1000)):
        store.write(make_bag(f"s{seed}", n=n, seed=seed))
    return tmp_path / "features"


def run(*arguments: str | Path) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["pack", *map(str, arguments)], terminal_width=80)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


@pytest.mark.parametrize("backend", ["hdf5", "zarr"])
def test_a_summary_counts_files_and_bytes_before_and_after(tmp_path: Path, backend: Backend) -> None:
    store = open_store(tmp_path / "features", mode="w", backend=backend)
    for slide_id in "abc":
        store.write(make_bag(slide_id))
    (tmp_path / "features" / "extract.jsonl").write_text("not counted")
    summary = pack(tmp_path / "features", tmp_path / "packs" / "cohort.zarr")
    before = [p for p in (tmp_path / "features").rglob("*") if p.is_file() and p.name != "extract.jsonl"]
    after = [p for p in (tmp_path / "packs" / "cohort.zarr").rglob("*") if p.is_file()]
    assert (summary.slides, summary.tiles, summary.dim, summary.dtype) == (3, 3 * 63, 7, "float16")
    assert (summary.files_before, summary.bytes_before) == (len(before), sum(p.stat().st_size for p in before))
    assert (summary.files_after, summary.bytes_after) == (9, sum(p.stat().st_size for p in after))
    assert summary.write_seconds > 0
    assert summary.verify_seconds > 0


def test_the_command_says_what_it_did_in_words_and_in_json(features: Path, tmp_path: Path) -> None:
    code, out, err = run(features, tmp_path / "a.zarr")
    assert code == 0
    assert "3 slides, 1063 tiles of 7 float16 features -> " in out
    assert "3 files, " in out
    assert "became 9 files, " in out
    assert "[3/3] s2: 1000 tiles packed" in err
    assert "[3/3] s2: read back" in err
    code, out, err = run(features, tmp_path / "b.zarr", "--json", "--quiet")
    assert err == ""
    said = json.loads(out)
    assert (said["slides"], said["files_before"], said["files_after"], said["failed_ids"]) == (3, 3, 9, [])
    assert said["write_mb_per_s"] > 0


def test_slides_that_failed_are_told_and_stay_known(features: Path, tmp_path: Path) -> None:
    (features / "failures.2-of-3.csv").write_text("slide_id,path,step,reason\ns2,x,open,bad\ngone,x,open,bad\n")
    code, out, _ = run(features, tmp_path / "a.zarr")
    assert code == 0
    assert (
        "note: 1 slides failed in the last extraction, and are packed with the features of an earlier one: 's2'" in out
    )
    assert pack(tmp_path / "a.zarr", tmp_path / "b.zarr").failed_ids == ("s2",)


def test_a_pack_is_replaced_only_when_told(features: Path, tmp_path: Path) -> None:
    out = tmp_path / "cohort.zarr"
    pack(features, out)
    open_store(features, mode="w").write(make_bag("s3", n=5))
    code, _, err = run(features, out)
    assert code == 2
    assert "is a pack already: choose another name, or replace it with --overwrite" in err
    assert open_store(out, mode="r").ids() == ["s0", "s1", "s2"]
    assert run(features, out, "--overwrite")[0] == 0
    assert open_store(out, mode="r").ids() == ["s0", "s1", "s2", "s3"]
    assert {entry.name for entry in tmp_path.iterdir()} == {"features", "cohort.zarr"}


def test_what_is_no_pack_is_not_replaced_even_when_told(features: Path, tmp_path: Path) -> None:
    slides = tmp_path / "slides.zarr"
    open_store(slides, mode="w", backend="zarr").write(make_bag("only"))
    holder = tmp_path / "holder.zarr"
    pack(features, holder / "inner.zarr")
    (tmp_path / "file.zarr").write_text("mine")
    (tmp_path / "link.zarr").symlink_to(holder / "inner.zarr")
    for out in (slides, slides / "only.zarr", holder, tmp_path / "file.zarr", tmp_path / "link.zarr"):
        with pytest.raises(ConfigError, match="is there and is no pack: choose another name, or move it away"):
            pack(features, out, overwrite=True)
    assert (slides / "only.zarr" / "zarr.json").is_file()
    assert (holder / "inner.zarr" / "zarr.json").is_file()


def test_places_that_would_be_mistaken_are_refused(features: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cohort: the name of a pack ends in \.zarr, wanted .*cohort\.zarr"):
        pack(features, tmp_path / "cohort")
    for out in (features / "cohort.zarr", tmp_path / "x" / ".." / "features" / "cohort.zarr"):
        with pytest.raises(ConfigError, match="would lie among the features that it packs"):
            pack(features, out)
    pack(features, tmp_path / "cohort.zarr")
    with pytest.raises(ConfigError, match="would lie among the features that it packs"):
        pack(tmp_path / "cohort.zarr", tmp_path / "cohort.zarr", overwrite=True)
    assert {entry.name for entry in tmp_path.iterdir()} == {"features", "cohort.zarr"}


def test_no_room_is_told_before_the_work(features: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    used = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: used._replace(free=1063 * 34 - 1))
    with pytest.raises(
        OutputError, match=r"the pack takes 0\.0 GB, 0\.0 GB are free; free space or choose another place"
    ):
        pack(features, tmp_path / "cohort.zarr")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: used._replace(free=1063 * 34))
    assert pack(features, tmp_path / "cohort.zarr").slides == 3


def test_a_broken_slide_is_named_before_anything_is_written(features: Path, tmp_path: Path) -> None:
    (features / "s1.h5").write_bytes(b"")
    with pytest.raises(StoreError, match=r"s1\.h5 is damaged"):
        pack(features, tmp_path / "packs" / "cohort.zarr")
    assert not (tmp_path / "packs").exists()


def test_what_a_crashed_packing_left_is_removed(features: Path, tmp_path: Path) -> None:
    out = tmp_path / "packs" / "cohort.zarr"
    pack(features, out)
    with suppress(KeyError), atomic_directory(out) as temporary:
        raise KeyError
    (out.parent / temporary.name.replace(f".{os.getpid()}.", ".999999999.")).mkdir()
    pack(features, out, overwrite=True)
    assert [entry.name for entry in out.parent.iterdir()] == ["cohort.zarr"]


# From slides to a model and to answers, from the folder and from a pack of it.


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, make_slide: Make) -> Path:
    """Features of eight slides, one of them without tissue; a pack of them beside thumbnails and tissue; a cohort."""
    root = tmp_path_factory.mktemp("place")
    lines = ["slide_id,patient_id,label,split"]
    for index in range(8):
        make_slide(root / f"slides/s{index}.tiff", seed=index, size_px=(768, 768), tissue=index != 7)
        lines.append(f"s{index},p{index},{'ab'[index % 2]},{('train', 'val', 'test', 'train')[index // 2]}")
    (root / "cohort.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    extract(load_config(ExtractConfig, given={"device": "cpu"}), list_sources(root / "slides"), root / "features")
    (root / "features" / "failures.csv").write_text("slide_id,path,step,reason\ns2,x,open,bad\n", encoding="utf-8")
    pack(root / "features", root / "packs" / "cohort.zarr")
    for beside in ("thumbnails", "tissue"):
        shutil.copytree(root / "features" / beside, root / "packs" / beside)
    return root


def contents(folder: Path, *, without: tuple[str, ...] = ()) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not path.relative_to(folder).parts[0].startswith(without)
    }


@pytest.fixture(scope="module")
def run_of_folder(place: Path) -> Path:
    config = load_config(TrainConfig, given={"device": "cpu", "fit.epochs": 3})
    train(config, place / "features", place / "cohort.csv", place / "run")
    return place / "run"


@pytest.mark.parametrize("source", ["packs/cohort.zarr", "packs"])
def test_training_from_a_pack_gives_the_same_model_bit_for_bit(
    place: Path, run_of_folder: Path, tmp_path: Path, source: str
) -> None:
    config = load_config(TrainConfig, given={"device": "cpu", "fit.epochs": 3})
    train(config, place / source, place / "cohort.csv", tmp_path)
    timed = ("checkpoint", "tensorboard", "metrics.jsonl")  # these hold seconds
    ours, theirs = contents(tmp_path, without=timed), contents(run_of_folder, without=timed)
    assert set(ours) == set(theirs)
    assert {name for name in ours if ours[name] != theirs[name]} == set()
    assert b"failed in the last extraction" in ours["cohort.txt"]


@pytest.mark.parametrize("source", ["packs/cohort.zarr", "packs"])
def test_predictions_from_a_pack_are_the_same_files(
    place: Path, run_of_folder: Path, tmp_path: Path, source: str
) -> None:
    options = PredictOptions(device="cpu")
    predict(run_of_folder, place / "features", tmp_path / "a", options=options, cohort_csv=place / "cohort.csv")
    predict(run_of_folder, place / source, tmp_path / "b", options=options, cohort_csv=place / "cohort.csv")
    ours, theirs = contents(tmp_path / "b"), contents(tmp_path / "a")
    assert {name.split("/")[0] for name in ours} >= {"scores", "qupath", "overlays", "predictions.csv"}
    assert set(ours) == set(theirs)
    assert {name for name in ours if ours[name] != theirs[name]} == set()


def test_a_pack_is_no_place_for_predictions_or_for_features(place: Path, run_of_folder: Path, tmp_path: Path) -> None:
    options = PredictOptions(device="cpu")
    config = load_config(ExtractConfig, given={"device": "cpu", "store": "zarr"})
    for out in (place / "packs", place / "packs" / "cohort.zarr"):
        with pytest.raises(ConfigError, match="holds features; predictions replace files"):
            predict(run_of_folder, place / "features", out, options=options)
        with pytest.raises(StoreError, match="is a pack, which is only read"):
            extract(config, list_sources(place / "slides"), out)
