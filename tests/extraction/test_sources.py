"""A file, a folder or a manifest becomes a list of named slides."""

from __future__ import annotations

from pathlib import Path

import pytest

from wsimil.errors import ConfigError
from wsimil.extraction.sources import Shard, SlideSource, clashes, list_sources


def touch(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"")
    return path


def test_a_folder_is_searched_through_and_sorted_by_id(tmp_path: Path) -> None:
    for name in ("b.svs", "sub/a.ndpi", "notes.txt", ".hidden.svs"):
        touch(tmp_path / name)
    assert [s.slide_id for s in list_sources(tmp_path)] == ["a", "b"]


def test_an_empty_folder_says_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no slide in .*\.svs"):
        list_sources(tmp_path)


def test_a_single_file_is_one_slide_and_a_missing_one_a_wrong_command(tmp_path: Path) -> None:
    path = tmp_path / "a.svs"
    with pytest.raises(
        ConfigError, match=r"a\.svs does not exist; give a slide, a folder of slides, or a CSV manifest"
    ):
        list_sources(path)
    path.touch()
    assert list_sources(path) == [SlideSource(slide_id="a", path=path)]


@pytest.mark.parametrize("mpp", ["0", "-0.25", "nan", "inf", "0,25"])
def test_an_mpp_that_cannot_be_is_refused_by_line(tmp_path: Path, mpp: str) -> None:
    (tmp_path / "m.csv").write_text(f'path,mpp\na.svs,0.5\nb.svs,"{mpp}"\n', encoding="utf-8")
    with pytest.raises(ConfigError, match=r"line 3: mpp .* wanted a number of µm per pixel"):
        list_sources(tmp_path / "m.csv")


def test_a_field_without_an_end_is_a_message(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text('path\n"a.svs\n' + "x" * 200_000, encoding="utf-8")
    with pytest.raises(ConfigError, match="cannot be read at line 3: field larger than field limit"):
        list_sources(tmp_path / "m.csv")


@pytest.mark.parametrize("text", ["", "²/3", "1/", "a/2", "1.0/2"])
def test_a_shard_that_is_no_fraction_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="wanted i/n"):
        Shard.parse(text)


def test_a_manifest_gives_ids_mpp_and_masks_relative_to_itself(tmp_path: Path) -> None:
    manifest = tmp_path / "m.csv"
    manifest.write_text(
        "\ufeffslide_id, path ,mpp,mask,other\n two,b.svs,0.25,masks/b.geojson,x\n,a.svs,,,\n", encoding="utf-8"
    )
    assert list_sources(manifest) == [
        SlideSource(slide_id="a", path=tmp_path / "a.svs"),
        SlideSource(slide_id="two", path=tmp_path / "b.svs", mpp=0.25, mask=tmp_path / "masks/b.geojson"),
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("slide,mpp\na,1\n", "wanted a column 'path'"),
        ("", "wanted a column 'path'"),
        ("path,mpp\na.svs,20x\n", "line 2: mpp '20x', wanted a number of µm per pixel"),
        ("path,mpp\n,0.5\n", "line 2: path is empty"),
        ("path\na.svs,0.5\n", "line 2: wanted 1 values, as the header has, got 2"),
        ("path;mpp\na.svs;0,5\n", "line 2: mpp '0,5', wanted a number of µm per pixel"),
    ],
)
def test_a_broken_manifest_is_named_with_its_line(tmp_path: Path, text: str, expected: str) -> None:
    manifest = tmp_path / "m.csv"
    manifest.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        list_sources(manifest)
    assert expected in str(caught.value)
    assert str(manifest) in str(caught.value)


def test_two_files_of_one_id_are_told_apart_from_the_rest(tmp_path: Path) -> None:
    one, two = touch(tmp_path / "x/a.svs"), touch(tmp_path / "y/a.tiff")
    touch(tmp_path / "b.svs")
    assert clashes(list_sources(tmp_path)) == {"a": [one, two]}


def test_shards_are_disjoint_and_together_the_whole() -> None:
    whole = [SlideSource(slide_id=str(i), path=Path(str(i))) for i in range(10)]
    parts = [Shard(index=i, count=3).take(whole) for i in (1, 2, 3)]
    assert sorted((s for part in parts for s in part), key=lambda s: int(s.slide_id)) == whole
    assert max(map(len, parts)) - min(map(len, parts)) == 1


@pytest.mark.parametrize("text", ["0/3", "4/3", "3", "a/b", "1/0"])
def test_an_impossible_shard_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="shard"):
        Shard.parse(text)
