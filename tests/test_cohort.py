"""No patient in two splits, and nothing dropped in silence."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsimil.cohort import Cohort, CohortSlide, column_names, has_columns, read_cohort, read_columns, read_patients
from wsimil.errors import CohortError
from wsimil.targets import Classification, Regression


def write(folder: Path, text: str, encoding: str = "utf-8") -> Path:
    path = folder / "cohort.csv"
    path.write_bytes(text.encode(encoding))
    return path


def cohort(counts: dict[str, int], slides_each: int = 2) -> Cohort:
    slides = [
        CohortSlide(
            slide_id=f"{label}{i}" if slides_each == 1 else f"{label}{i}_{j}", patient_id=f"{label}{i}", label=label
        )
        for label, count in counts.items()
        for i in range(count)
        for j in range(slides_each)
    ]
    return Cohort(slides=tuple(slides), classes=tuple(sorted(counts)))


def test_a_plain_file_is_read_in_its_order(tmp_path: Path) -> None:
    got = read_cohort(write(tmp_path, "slide_id,patient_id,label,age\nb,p1,tumor,40\na,p2,normal,50\n"))
    assert got.slide_ids == ("b", "a")
    assert got.classes == ("normal", "tumor")
    assert got.targets(got.slides).tolist() == [1, 0]
    assert got.findings == ()


def test_a_bom_semicolons_and_stray_spaces_are_understood_and_counted(tmp_path: Path) -> None:
    path = write(tmp_path, "slide_id; patient_id ;label\n a ;p1;tumor\nb;p2; normal\nc;p3;tumor\n", "utf-8-sig")
    got = read_cohort(path)
    assert got.slide_ids == ("a", "b", "c")
    assert [str(f) for f in got.findings] == ["2 rows had spaces around values, which were removed: 'a', 'b'"]


def test_a_slide_without_label_is_in_the_bag_of_its_patient_where_he_has_one(tmp_path: Path) -> None:
    text = "slide_id,patient_id,label\na,p1,\nb,p1,tumor\nc,p2,normal\nd,p2,none\ne,p3,\n"
    path = write(tmp_path, text)
    got = read_cohort(path, bag="patient")
    assert {s.slide_id: s.label for s in got.slides} == {"a": "tumor", "b": "tumor", "c": "normal", "d": "normal"}
    assert [row.members for row in got.by_patient().slides] == [("a", "b"), ("c", "d")]
    assert [str(f) for f in got.findings] == [
        "1 slides have no label and are in the bags of their patients: 'a'",
        "1 slides say 'none', read as missing, and are in the bags of their patients; where it is a class, name all of them in"
        " task.classes: 'd'",
        "1 slides have no label and are left out: 'e'",
    ]
    assert read_cohort(path).slide_ids == ("b", "c")


@pytest.mark.parametrize(("column", "cells"), [("split", ("train", "test")), ("fold", ("1", "0"))])
def test_a_slide_without_label_is_where_its_patient_is(tmp_path: Path, column: str, cells: tuple[str, str]) -> None:
    rows = ["a,p1,,,", f"b,p1,tumor,S,{cells[0]}", "c,p2,,T,", f"d,p2,normal,S,{cells[1]}"]
    text = "\n".join([f"slide_id,patient_id,label,site,{column}", *rows, ""])
    got = read_cohort(write(tmp_path, text), bag="patient")
    assert [str(getattr(slide, column)) for slide in got.slides] == [cells[0]] * 2 + [cells[1]] * 2
    assert [slide.site for slide in got.slides] == ["S", "S", "T", "S"]
    assert [(row.site, str(getattr(row, column))) for row in got.by_patient().slides] == [
        ("S", cells[0]),
        (None, cells[1]),
    ]


def test_a_slide_without_label_is_left_out_and_counted_by_what_its_cell_says(tmp_path: Path) -> None:
    text = "slide_id,patient_id,label\na,p1,tumor\nb,p2,normal\nc,p3,\nd,p4,NA\ne,p5,none\nf,p6,none\n"
    got = read_cohort(write(tmp_path, text))
    assert got.slide_ids == ("a", "b")
    assert [str(f) for f in got.findings] == [
        "1 slides have no label and are left out: 'c'",
        "1 slides say 'NA', read as missing, and are left out; where it is a class, name all of them in task.classes: 'd'",
        "2 slides say 'none', read as missing, and are left out; where it is a class, name all of them in task.classes:"
        " 'e', 'f'",
    ]


def test_a_class_that_is_lost_to_a_word_for_missing_is_named_where_too_few_are_left(tmp_path: Path) -> None:
    with pytest.raises(
        CohortError, match=r"two classes, got 1 slides of \['tumor'\].*; 1 slides say 'none', read as missing"
    ):
        read_cohort(write(tmp_path, "slide_id,patient_id,label\na,p1,tumor\nb,p2,none\n"))
    with pytest.raises(CohortError, match="no slide has a label; 1 slides say 'none', read as missing"):
        read_cohort(write(tmp_path, "slide_id,patient_id,label\nb,p2,none\n"))


READERS: dict[str, Callable[[Path], object]] = {
    "read_cohort": read_cohort,
    "read_patients": read_patients,
    "read_columns": lambda path: read_columns(path, ["label"]),
    "has_columns": lambda path: has_columns(path, Classification()),
    "column_names": column_names,
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(
    ("rows", "says"),
    [
        # The second patient owned the slide, and in a model of patients strangers became one.
        ("c,p1,x\nd,p2,y\nc,p9,\n", r"1 occur more than once: 'c' \('c' in lines 4, 6\); keep one row for each slide"),
        ("c,p1,\nc,p1,\n", r"1 occur more than once: 'c' \('c' in lines 4, 5\)"),
        ("c,P2,\n", r"patient ids 'P2' \(1 slides\) and 'p2' \(1 slides\) differ in case alone"),
        ("c,7,x\nd,7.0,\n", r"patient ids '7' \(1 slides\) and '7\.0' \(1 slides\) differ in a final \.0 alone"),
        ("c,,\n", "line 4: patient_id is empty"),
        # pandas writes nan for whom it does not know, and strangers were one patient.
        ("c,nan,x\nd,NaN,y\n", "line 4: patient_id 'nan' says that it is missing"),
        ("c,N/A,\n", "line 4: patient_id 'N/A' says that it is missing"),
        (",p1,\n", "line 4: slide_id is empty"),
        ("\n\n,p1,\n", "line 6: slide_id is empty"),
    ],
)
def test_ids_are_held_to_the_same_by_every_reader_whether_a_row_has_a_label_or_not(
    tmp_path: Path, reader: str, rows: str, says: str
) -> None:
    path = write(tmp_path, "slide_id,patient_id,label\na,p1,x\nb,p2,y\n" + rows)
    with pytest.raises(CohortError, match=says) as caught:
        READERS[reader](path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "slide_id,patient,label\na,p,x\n",
            "column 'patient_id' is missing; it has 'slide_id', 'patient', 'label'; did you mean",
        ),
        ("slide_id,patient_id,label\na,p1,x\na,p2,y\n", "slide_id must be unique, 1 occur more than once: 'a'"),
        ("slide_id,patient_id,label\na,p1,x\nb,p2,x\n", "at least two classes, got 2 slides of ['x']"),
        ("slide_id,patient_id,label\na,,x\n", "line 2: patient_id is empty"),
        ("slide_id,patient_id,label\na,p1\n", "line 2: wanted 3 values"),
        ("slide_id,patient_id,label\na,p1,x,9\n", "line 2: wanted 3 values"),
        (
            "slide_id,patient_id,label,split\na,p1,x,training\nb,p2,y,test\n",
            "split 'training', wanted one of train, val, test",
        ),
        ("slide_id,patient_id,label,fold\na,p1,x,one\nb,p2,y,0\n", "fold 'one', wanted a whole number"),
        ("slide_id,patient_id,label,fold\na,p1,x,²\nb,p2,y,0\n", "fold '²', wanted a whole number"),
        (
            "slide_id,patient_id,label\na,p1,Tumor\nb,p2,tumor\nc,p3,tumor\nd,p4,n\n",
            "classes 'Tumor' (1 slides) and 'tumor' (2 slides) differ in case alone",
        ),
        (
            "slide_id,patient_id,label\na,p1,1\nb,p2,1.0\nc,p3,0\n",
            "classes '1' (1 slides) and '1.0' (1 slides) differ in a final .0 alone",
        ),
        ("slide_id,patient_id,label\na,p1,x;y\nb,p2,x\n", "class 'x;y' holds a semicolon"),
        (
            "slide_id,patient_id,label,split\na,p1,x,train\nb,p1,y,test\n",
            "1 patients are in more than one split: 'p1' ('p1' in test, train)",
        ),
        ("slide_id,patient_id,label,label\n", "column 'label' occurs twice"),
        ("", "column 'slide_id', 'patient_id', 'label' is missing; it has none"),
        ("slide_id,patient_id,label\n", "no slide has a label"),
    ],
)
def test_a_contradiction_is_refused_with_its_place(tmp_path: Path, text: str, expected: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(CohortError) as caught:
        read_cohort(path)
    assert expected in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_missing_file_and_a_binary_file_are_named(tmp_path: Path) -> None:
    with pytest.raises(CohortError, match=r"cohort file .*absent\.csv does not exist"):
        read_cohort(tmp_path / "absent.csv")
    (tmp_path / "binary.csv").write_bytes(b"\xff\x00")
    with pytest.raises(CohortError, match="cannot be read as UTF-8"):
        read_cohort(tmp_path / "binary.csv")


def test_a_label_that_the_model_does_not_know_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, "slide_id,patient_id,label\na,p1,tumour\n")
    with pytest.raises(CohortError, match=r"line 2: slide 'a': label 'tumour' is none of the classes normal, tumor"):
        read_cohort(path, task=Classification(classes=("normal", "tumor")))


def test_what_is_missing_on_either_side_is_counted() -> None:
    got = cohort({"n": 3, "t": 3}, 1).matched(["n0", "n1", "t0", "t1", "other"], empty_ids=["n1"])
    assert got.slide_ids == ("n0", "t0", "t1")
    assert [str(f) for f in got.findings] == [
        "2 labelled slides have no features and are left out: 'n2', 't2'",
        "1 feature files have no label and are left out: 'other'",
        "1 slides have no tissue tile and are left out: 'n1'",
    ]


def test_no_match_at_all_shows_both_kinds_of_names() -> None:
    with pytest.raises(CohortError, match=r"'n0', 'n1'.*'n0.svs', 'n1.svs'"):
        cohort({"n": 2, "t": 2}, 1).matched(["n0.svs", "n1.svs"])
    with pytest.raises(CohortError, match="no slide of class"):
        cohort({"n": 2, "t": 2}, 1).matched(["n0", "n1"])


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(4, 20),
    t=st.integers(4, 20),
    each=st.integers(1, 3),
    seed=st.integers(0, 99),
    folds=st.none() | st.integers(2, 3),
)
def test_every_draw_keeps_patients_whole_and_classes_in_every_split(
    n: int, t: int, each: int, seed: int, folds: int | None
) -> None:
    whole = cohort({"n": n, "t": t}, each)
    got = whole.with_splits(seed=seed, folds=folds)
    homes = {s.patient_id: set() for s in got.slides}
    for slide in got.slides:
        homes[slide.patient_id].add(slide.split)
    assert all(len(splits) == 1 for splits in homes.values())
    for split in ("train", "val", "test"):
        assert {s.label for s in got.of(split)} == {"n", "t"}
    assert got == whole.with_splits(seed=seed, folds=folds)


def test_folds_are_a_partition_and_differ_by_one_at_most() -> None:
    whole = cohort({"n": 13, "t": 9})
    tests = [{s.patient_id for s in whole.with_splits(seed=3, folds=4, fold=k).of("test")} for k in range(4)]
    assert Counter(p for part in tests for p in part) == Counter(whole.patients)
    assert max(map(len, tests)) - min(map(len, tests)) <= 1


def test_a_patient_that_is_alone_in_a_quantile_is_learned_from() -> None:
    """A quantile was taken for a class, of which training and validation need a patient each."""
    slides = tuple(
        CohortSlide(slide_id=f"s{i}", patient_id=f"p{i}", label=str(i), split="train" if i < 31 else "test")
        for i in range(40)
    )
    drawn = Cohort(slides=slides, task=Regression(columns=("age",))).with_splits(seed=0)
    assert Counter(s.split for s in drawn.slides) == {"train": 25, "val": 6, "test": 9}
    assert next(s.split for s in drawn.slides if s.slide_id == "s30") == "train"


def test_another_seed_draws_other_patients() -> None:
    whole = cohort({"n": 20, "t": 20})
    assert whole.with_splits(seed=0) != whole.with_splits(seed=1)


def test_given_splits_are_kept_and_a_missing_val_is_drawn_from_train_and_counted(tmp_path: Path) -> None:
    lines = [f"s{i},p{i},{'xy'[i % 2]},{'test' if i < 4 else 'train'}" for i in range(20)]
    got = read_cohort(write(tmp_path, "slide_id,patient_id,label,split\n" + "\n".join(lines) + "\n")).with_splits(
        seed=0
    )
    assert [s.slide_id for s in got.of("test")] == ["s0", "s1", "s2", "s3"]
    assert {s.label for s in got.of("val")} == {"x", "y"}
    assert got.findings[-1].slide_ids == tuple(s.slide_id for s in got.of("val"))


def test_a_fold_column_chooses_the_test_split(tmp_path: Path) -> None:
    lines = [f"s{i},p{i},{'xy'[i % 2]},{i // 4}" for i in range(16)]
    whole = read_cohort(write(tmp_path, "slide_id,patient_id,label,fold\n" + "\n".join(lines) + "\n"))
    assert [s.slide_id for s in whole.with_splits(seed=0, fold=2).of("test")] == ["s8", "s9", "s10", "s11"]
    with pytest.raises(CohortError, match=r"fold 7 was asked for, the fold column holds \[0, 1, 2, 3\]"):
        whole.with_splits(seed=0, fold=7)


def test_folds_that_would_be_ignored_are_refused(tmp_path: Path) -> None:
    lines = [f"s{i},p{i},{'xy'[i % 2]},{('train', 'val', 'test')[i // 2 % 3]},{i // 4}" for i in range(16)]
    split = read_cohort(write(tmp_path, "slide_id,patient_id,label,split,x\n" + "\n".join(lines) + "\n"))
    for asked in ({"folds": 3}, {"fold": 1}):
        with pytest.raises(CohortError, match="the split column gives every slide its split already"):
            split.with_splits(seed=0, **asked)
    folds = read_cohort(write(tmp_path, "slide_id,patient_id,label,x,fold\n" + "\n".join(lines) + "\n"))
    assert folds.with_splits(seed=0, folds=4).of("test")
    with pytest.raises(CohortError, match="3 folds were asked for, the fold column holds 4"):
        folds.with_splits(seed=0, folds=3)
    both = read_cohort(write(tmp_path, "slide_id,patient_id,label,split,fold\n" + "\n".join(lines) + "\n"))
    for asked in ({}, {"fold": 1}):
        with pytest.raises(CohortError, match="a split column and a fold column"):
            both.with_splits(seed=0, **asked)
    with pytest.raises(CohortError, match="fold 1 was asked for without a number of folds"):
        cohort({"n": 9, "t": 9}).with_splits(seed=0, fold=1)


def test_a_model_that_learned_classes_apart_by_case_alone_still_answers(tmp_path: Path) -> None:
    path = write(tmp_path, "slide_id,patient_id,label\na,p1,Tumor\nb,p2,tumor\n")
    assert len(read_cohort(path, task=Classification(classes=("Tumor", "tumor"))).slides) == 2


def test_patients_that_differ_in_case_alone_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path, "slide_id,patient_id,label\na,TCGA-1,x\nb,tcga-1,y\nc,p3,y\n")
    with pytest.raises(CohortError, match=r"'TCGA-1' \(1 slides\) and 'tcga-1' \(1 slides\) differ in case alone"):
        read_cohort(path)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        pytest.param("M\u00fcller", "Mu\u0308ller", id="an umlaut as one sign and as two"),
        pytest.param("P 1", "P\u00a01", id="a space that does not break"),
        pytest.param("P1", "P1\u200b", id="a sign that cannot be seen"),
        pytest.param("M\u00fcller", "Mu\u200b\u0308ller", id="a sign that cannot be seen in an umlaut"),
    ],
)
def test_patients_that_read_the_same_are_refused(tmp_path: Path, one: str, other: str) -> None:
    path = write(tmp_path, f"slide_id,patient_id,label\na,{one},x\nb,{other},y\nc,p3,y\n")
    shown = " and ".join(f"{name!a} (1 slides)" for name in sorted([one, other]))
    with pytest.raises(CohortError, match=re.escape(f"patient ids {shown} differ in how Unicode writes them alone")):
        read_cohort(path)


def test_patients_with_signs_of_their_own_are_two(tmp_path: Path) -> None:
    path = write(tmp_path, "slide_id,patient_id,label\na,P\ue000,x\nb,P\ue001,y\nc,p3,y\n")
    assert len(read_cohort(path).slides) == 3


def test_patients_of_whom_one_lost_the_zeros_before_its_number_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path, "slide_id,patient_id,label\na,0042,x\nb,42,y\nc,042x,y\nd,42x,y\n")
    with pytest.raises(
        CohortError, match=r"'0042' \(1 slides\) and '42' \(1 slides\) differ in zeros before a number alone; "
    ):
        read_cohort(path)


def test_a_class_with_fewer_patients_than_folds_is_refused() -> None:
    with pytest.raises(CohortError, match="class 't' has 3 patients, fewer than the 5 folds"):
        cohort({"n": 9, "t": 3}).with_splits(seed=0, folds=5)
    # "Ask for 1 folds" would be refused, too.
    with pytest.raises(CohortError, match="class 't' has 1 patient, fewer than the 5 folds; folds need two at least"):
        cohort({"n": 9, "t": 1}).with_splits(seed=0, folds=5)
    with pytest.raises(CohortError, match="has one patient left"):
        cohort({"n": 9, "t": 1}).with_splits(seed=0)


def test_a_fold_without_a_patient_is_refused_of_numbers_too() -> None:
    slides = tuple(CohortSlide(slide_id=f"s{i}", patient_id=f"p{i}", label=str(i)) for i in range(8))
    whole = Cohort(slides=slides, task=Regression(columns=("x",)))
    assert len(whole.with_splits(seed=0, folds=8, fold=7).of("test")) == 1
    with pytest.raises(
        CohortError, match="the cohort has 8 patients, fewer than the 9 folds; ask for 8 folds or fewer"
    ):
        whole.with_splits(seed=0, folds=9, fold=8)


@pytest.mark.parametrize(
    ("column", "cells", "says"),
    [
        ("split", ("train", "", "train", "train"), "the split column is empty for 1 slides: 'b'"),
        ("fold", ("1", "", "0", "0"), "the fold column is empty for 1 slides: 'b'"),
        ("split", ("train", "val", "val", "val"), r"the train split holds no slide of class \['y'\]"),
        ("split", ("train", "train", "val", "test"), r"the val split holds no slide of class \['y'\]"),
        ("split", ("val", "test", "val", "test"), "no slide is in the train split"),
        ("split", ("train", "train", "test", "test"), "no slide is in the val split"),
    ],
)
def test_columns_that_leave_a_side_without_a_class_or_a_slide_without_a_side_are_refused(
    tmp_path: Path, column: str, cells: tuple[str, ...], says: str
) -> None:
    rows = [f"{'abcd'[i]},p{i},{'xy'[i % 2]},{cell}" for i, cell in enumerate(cells)]
    whole = read_cohort(write(tmp_path, "\n".join([f"slide_id,patient_id,label,{column}", *rows, ""])))
    with pytest.raises(CohortError, match=says):
        whole.with_splits(seed=0, val_fraction=0)


def test_a_class_that_is_not_tested_on_is_told(tmp_path: Path) -> None:
    rows = [f"s{i},p{i},{'xy'[i % 2]},{('train', 'val', 'test')[i // 2]}" for i in range(5)]
    got = read_cohort(write(tmp_path, "\n".join(["slide_id,patient_id,label,split", *rows, ""]))).with_splits(seed=0)
    assert [str(one) for one in got.findings] == [
        "1 slides are a test split without class y, some metrics stay undefined: 's4'"
    ]


@pytest.mark.parametrize("fold", [-1, 3])
def test_a_fold_that_is_none_of_those_drawn_is_refused(fold: int) -> None:
    with pytest.raises(CohortError, match=rf"fold {fold} was asked for, folds of 3 count from 0 to 2"):
        cohort({"n": 9, "t": 9}).with_splits(seed=0, folds=3, fold=fold)


def test_a_patient_with_two_labels_still_lands_in_one_split() -> None:
    slides = [
        CohortSlide(slide_id=f"s{i}", patient_id=f"p{i // 2}", label="xy"[i % 2 if i < 4 else i // 2 % 2])
        for i in range(40)
    ]
    got = Cohort(slides=tuple(slides), classes=("x", "y")).with_splits(seed=5, folds=4)
    assert all(len({s.split for s in got.slides if s.patient_id == p}) == 1 for p in got.patients)


def test_the_table_counts_slides_and_patients_and_reads_back(tmp_path: Path) -> None:
    got = cohort({"n": 10, "t": 10}).with_splits(seed=0)
    assert sum(row[2] for row in got.counts()) == 40
    assert sum(row[3] for row in got.counts()) == 20
    again = read_cohort(write(tmp_path, got.to_csv()))
    assert [(s.slide_id, s.patient_id, s.split) for s in again.slides] == [
        (s.slide_id, s.patient_id, s.split) for s in got.slides
    ]
