"""Config: what is meant is understood, what is not is named by file and key."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest
from pydantic import Field, JsonValue, ValidationError

from wsimil.config import FrozenConfig, load_config, parse_config
from wsimil.errors import ConfigError


class FitConfig(FrozenConfig):
    learning_rate: float = Field(default=1e-3, gt=0)
    epochs: int = 10
    schedule: Literal["cosine", "none"] = "cosine"


class TileConfig(FrozenConfig):
    size_px: int


class RunConfig(FrozenConfig):
    fit: FitConfig = FitConfig()
    tile: TileConfig | None = None
    name: str = "run"
    balanced: bool = False
    columns: tuple[str, ...] = ()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "train.yaml"


def refused(path: Path | None = None, *overrides: str, **given: JsonValue) -> list[str]:
    """The lines of the error."""
    with pytest.raises(ConfigError) as caught:
        load_config(RunConfig, path, overrides=overrides, given=given)
    return str(caught.value).splitlines()


def test_nothing_given_is_the_defaults() -> None:
    assert load_config(RunConfig) == RunConfig()


@pytest.mark.parametrize("text", ["", "# all commented out\n", "---\n"])
def test_an_empty_file_is_the_defaults(file: Path, text: str) -> None:
    file.write_text(text)
    assert load_config(RunConfig, file) == RunConfig()


def test_options_beat_overrides_and_overrides_beat_the_file(file: Path) -> None:
    file.write_text("name: file\nfit: {learning_rate: 1, epochs: 1}\ntile: {size_px: 63}\n")
    config = load_config(RunConfig, file, overrides=["name=set", "fit.epochs=2"], given={"name": "option"})
    assert config.name == "option"
    assert config.fit == FitConfig(learning_rate=1, epochs=2)
    assert config.tile == TileConfig(size_px=63)


def test_of_two_overrides_of_one_key_the_last_counts() -> None:
    assert load_config(RunConfig, overrides=["fit.epochs=1", "fit.epochs=2"]).fit.epochs == 2


def test_options_that_were_not_typed_change_nothing() -> None:
    assert load_config(RunConfig, overrides=["name=set"], given={"name": None, "fit.epochs": None}).name == "set"


def test_options_may_be_dotted() -> None:
    assert load_config(RunConfig, given={"fit.epochs": 5, "tile.size_px": 63}).tile == TileConfig(size_px=63)


@pytest.mark.parametrize("text", ["1e-4", "1.0e-4", "0.0001", " 1e-4 ", "'1e-4'"])
def test_a_number_in_scientific_notation_is_a_number(file: Path, text: str) -> None:
    file.write_text(f"fit:\n  learning_rate: {text}\n")
    assert load_config(RunConfig, file).fit.learning_rate == 1e-4
    assert load_config(RunConfig, overrides=[f"fit.learning_rate={text}"]).fit.learning_rate == 1e-4


@pytest.mark.parametrize(
    ("text", "wanted"), [("010", 10), ("+010", 10), ("-07", -7), ("08", 8), ("10", 10), ("1_000", 1000), ("0x10", 16)]
)
def test_zeros_before_a_number_change_nothing(file: Path, text: str, wanted: int) -> None:
    """YAML 1.1 takes 010 for octal: of seeds [009, 010, 011] it made 9, 8, 9."""
    file.write_text(f"fit:\n  epochs: {text}\n")
    assert load_config(RunConfig, file).fit.epochs == wanted
    assert load_config(RunConfig, overrides=[f"fit.epochs={text}"]).fit.epochs == wanted


def test_what_looks_like_a_time_is_no_number(file: Path) -> None:
    """YAML 1.1 takes 1:30 for 90."""
    assert refused(None, "fit.epochs=1:30")[0].endswith("got '1:30'")
    assert refused(None, "fit.learning_rate=1:30.5")[0].endswith("got '1:30.5'")
    file.write_text("name: 12:30\n")
    assert load_config(RunConfig, file).name == "12:30"


@pytest.mark.parametrize(
    ("override", "name", "wanted"),
    [
        ("balanced=true", "balanced", True),
        ("balanced=no", "balanced", False),
        ("name=a=b", "name", "a=b"),
        ("name='1'", "name", "1"),
        ("name=[unclosed", "name", "[unclosed"),
        ("columns=[a, b]", "columns", ("a", "b")),
        ("tile={size_px: 63}", "tile", TileConfig(size_px=63)),
        ("tile=null", "tile", None),
    ],
)
def test_the_value_of_an_override_is_yaml(override: str, name: str, wanted: object) -> None:
    assert getattr(load_config(RunConfig, overrides=[override]), name) == wanted


def test_a_section_whose_keys_are_commented_out_takes_an_override(file: Path) -> None:
    file.write_text("fit:\n  # epochs: 3\n")
    assert load_config(RunConfig, file, overrides=["fit.epochs=2"]).fit.epochs == 2


def test_a_byte_order_mark_is_not_part_of_the_first_key(file: Path) -> None:
    file.write_bytes(b"\xef\xbb\xbfname: x\n")
    assert load_config(RunConfig, file).name == "x"


def test_an_unknown_key_says_file_key_got_and_did_you_mean(file: Path) -> None:
    file.write_text("fit:\n  learning_rat: 3\n")
    assert refused(file) == [f"{file}: fit.learning_rat: unknown key, got 3; did you mean 'learning_rate'?"]


def test_an_unknown_key_below_an_optional_section_is_compared_with_that_section(file: Path) -> None:
    file.write_text("tile:\n  size_px: 63\n  sise_px: 63\n")
    assert refused(file) == [f"{file}: tile.sise_px: unknown key, got 63; did you mean 'size_px'?"]


def test_an_unknown_key_like_no_other_lists_the_known_ones(file: Path) -> None:
    file.write_text("fit:\n  zzz: 3\n")
    assert refused(file) == [f"{file}: fit.zzz: unknown key, got 3; known keys: epochs, learning_rate, schedule"]


def test_a_missing_key_says_so(file: Path) -> None:
    file.write_text("tile: {}\n")
    assert refused(file) == [f"{file}: tile.size_px: missing; it has no default"]


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("fit.learning_rate=-1", "fit.learning_rate: input should be greater than 0, got -1"),
        ("fit.learning_rate=.inf", "fit.learning_rate: input should be a finite number, got inf"),
        ("fit.learning_rate=.nan", "fit.learning_rate: input should be a finite number, got nan"),
        ("fit.learning_rate=", "fit.learning_rate: input should be a valid number, got None"),
        ("fit.schedule=cosin", "fit.schedule: input should be 'cosine' or 'none', got 'cosin'"),
        (
            "fit=null",
            "fit: it has no keys; leave it out for its defaults, or give some of: epochs, learning_rate, schedule",
        ),
        ("fit=3", "fit: input should be a valid dictionary or instance of FitConfig, got 3"),
        ("name=no", "name: input should be a valid string, got False"),
        ("columns=[a, 1]", "columns.1: input should be a valid string, got 1"),
        ("ft.epochs=1", "ft: unknown key, got {'epochs': 1}; did you mean 'fit'?"),
        ("name.first=x", "name: input should be a valid string, got {'first': 'x'}"),
    ],
)
def test_a_wrong_override_says_key_wanted_and_got(override: str, line: str) -> None:
    assert refused(None, override) == [f"--set: {line}"]


def test_every_wrong_key_has_a_line_and_each_says_where_it_stood(file: Path) -> None:
    file.write_text("fit:\n  learning_rate: -1\n")
    lines = refused(file, "fit.epochs=x", "nam=1", balanced="maybe")
    assert [line.split(": ")[:2] for line in lines] == [
        [str(file), "fit.learning_rate"],
        ["--set", "fit.epochs"],
        ["command line", "balanced"],
        ["--set", "nam"],
    ]


@pytest.mark.parametrize("text", ["fit", "=3", "fit.=3", ".fit=3", "fit..epochs=3", " =3", ""])
def test_an_override_without_a_key_or_a_value_is_refused(text: str) -> None:
    assert refused(None, text) == [f"--set {text!r}: wanted key=value, for example --set fit.epochs=20"]


def test_an_override_below_a_value_is_refused(file: Path) -> None:
    file.write_text("fit: 3\n")
    assert refused(file, "fit.epochs=2") == ["--set: fit.epochs: 'fit' holds 3, which has no keys below it"]


@pytest.mark.parametrize(
    "text", ["name: a\nname: b\n", "fit: {epochs: 1}\nfit: {epochs: 2}\n", "fit: {epochs: 1, epochs: 2}\n"]
)
def test_a_key_that_stands_twice_is_refused(file: Path, text: str) -> None:
    file.write_text(text)
    (line,) = refused(file)
    assert line.startswith(f"config file {file} is not valid YAML: key ")
    assert "stands there twice" in line


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"fit: [", "is not valid YAML: while parsing a flow node"),
        (b"fit:\n\tepochs: 1\n", "is not valid YAML: .* line 2"),
        (b"name: !!python/object/apply:os.getcwd []\n", "is not valid YAML: could not determine a constructor"),
        (b"name: \xff\n", "cannot be read: .*invalid start byte"),
        (b"- a\n- b\n", "wanted a mapping of keys to values at the top, got list"),
        (b"just words\n", "wanted a mapping of keys to values at the top, got str"),
        (b"1: 2\n", "wanted keys that are text, got 1"),
    ],
    ids=["unclosed", "tab", "python object", "not UTF-8", "list", "words", "number as key"],
)
def test_a_file_that_is_no_config_is_one_line_that_names_it(file: Path, data: bytes, reason: str) -> None:
    file.write_bytes(data)
    with pytest.raises(ConfigError, match=reason) as caught:
        load_config(RunConfig, file)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    assert refused(tmp_path / "none.yaml") == [f"config file {tmp_path / 'none.yaml'} does not exist"]
    assert refused(tmp_path)[0].startswith(f"config file {tmp_path} cannot be read: ")


def test_what_is_resolved_is_read_back_the_same(file: Path) -> None:
    config = RunConfig(fit=FitConfig(learning_rate=1e-5), tile=TileConfig(size_px=63), name="Müller: 1", columns=("a",))
    file.write_text(config.to_yaml(), encoding="utf-8")
    assert load_config(RunConfig, file) == config
    assert list(config.to_yaml().split(":")[0:1]) == ["fit"]


def test_a_config_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        RunConfig().name = "x"  # type: ignore[misc]


def test_a_part_is_checked_with_the_prefix_of_the_whole() -> None:
    with pytest.raises(ConfigError, match=r"^train\.yaml: method\.fit\.epochs: .*, got 'x'$"):
        parse_config(RunConfig, {"fit": {"epochs": "x"}}, source="train.yaml", prefix="method")


def test_truth_is_no_number_and_a_date_that_is_none_is_text(tmp_path: Path) -> None:
    class Sizes(FrozenConfig):
        side: float = 1.0
        count: int | None = None
        name: str = ""
        on: bool = True

    for key in ("side", "count"):
        with pytest.raises(ConfigError, match=rf"{key}: wanted a number, got True"):
            load_config(Sizes, overrides=[f"{key}=yes"])
    assert load_config(Sizes, overrides=["on=no", "name=2026-13-45"]) == Sizes(on=False, name="2026-13-45")
    path = tmp_path / "c.yaml"
    path.write_text("name: 2026-13-45", encoding="utf-8")
    with pytest.raises(ConfigError, match="is not valid YAML: month must be in"):
        load_config(Sizes, path)


class StudyConfig(FrozenConfig):
    runs: dict[str, RunConfig] = Field(default_factory=dict)


def test_a_wrong_key_below_a_name_of_the_users_own_is_named_too() -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(StudyConfig, overrides=["runs.mine.fit.epoch=3", "runs.mine.nam=x"])
    assert str(caught.value).splitlines() == [
        "--set: runs.mine.fit.epoch: unknown key, got 3; did you mean 'epochs'?",
        "--set: runs.mine.nam: unknown key, got 'x'; did you mean 'name'?",
    ]
