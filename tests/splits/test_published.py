"""Published splits are read as their authors wrote them, and never with the test fold as the validation split."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from wsimil.cohort import Cohort, CohortSlide, read_cohort
from wsimil.errors import CohortError
from wsimil.splits import SplitPlan, read_published

LABELS = Path(__file__).resolve().parents[3] / "shared" / "data" / "labels"
pytestmark = [
    pytest.mark.shared,
    pytest.mark.skipif(not LABELS.is_dir(), reason="../shared/data/labels is absent"),
]


def of_pairs(pairs: list[tuple[str, str, str]]) -> Cohort:
    slides = tuple(CohortSlide(slide_id=s, patient_id=p, label=label) for s, p, label in pairs)
    return Cohort(slides=slides, classes=tuple(sorted({label for _, _, label in pairs})))


def from_csv(path: Path, slide: str, patient: str, label: str) -> Cohort:
    with path.open(encoding="utf-8") as file:
        return of_pairs([(row[slide], row[patient], row[label]) for row in csv.DictReader(file)])


def read(cohort: Cohort, *paths: Path) -> SplitPlan:
    return read_published(paths, cohort, val_fraction=0.1, seed=0)


def counts(plan: SplitPlan) -> list[tuple[int, int, int]]:
    return [(len(one.train), len(one.val), len(one.test)) for one in plan.rounds]


def test_clam() -> None:
    folder = LABELS / "clam_splits"
    cohort = from_csv(folder / "tumor_vs_normal_dummy_clean.csv", "slide_id", "case_id", "label")
    names = read(cohort, folder / "task_1_splits_0.csv", folder / "task_1_splits_1.csv")
    assert [one.name for one in names.rounds] == ["0", "1"]
    flags = read(cohort, folder / "task_1_splits_0_bool.csv")
    assert [side for _, side in flags.rounds[0].sides()] == [side for _, side in names.rounds[0].sides()]
    rows = (folder / "task_1_splits_0_bool.csv").read_text(encoding="utf-8").split()
    assert sum(counts(names)[0]) == len(rows) - 1
    with pytest.raises(CohortError, match="counts of classes"):
        read(cohort, folder / "task_1_splits_0_descriptor.csv")


def test_transmil() -> None:
    path = LABELS / "camelyon16" / "TransMIL_fold0.csv"
    with path.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    pairs = [
        (row[side], row[side], str(int(float(row[f"{side}_label"]))))
        for row in rows
        for side in ("train", "val", "test")
        if row[side]
    ]
    plan = read(of_pairs(pairs), path)
    assert sum(counts(plan)[0]) == len(pairs)
    assert set(plan.rounds[0].test) == {row["test"] for row in rows if row["test"]}


def test_acmil_json_and_column() -> None:
    cohort = from_csv(LABELS / "camelyon16" / "ACMIL_camelyon16.csv", "slide_id", "slide_id", "label")
    plan = read(cohort, LABELS / "camelyon16" / "ACMIL_split_1.json")
    assert plan.rounds[0].name in ("0", "")
    assert all(counts(plan)[0])
    bracs = from_csv(LABELS / "bracs" / "ACMIL_bracs.csv", "slide_id", "case_id", "label")
    assert sum(counts(read(bracs, LABELS / "bracs" / "ACMIL_bracs.csv"))[0]) == len(bracs.slides)


def test_xmil_sides_and_folds() -> None:
    tp53 = LABELS / "tcga" / "xMIL_tcga_luad_tp53_60_15_25_0.csv"
    plan = read(from_csv(tp53, "case_id", "case_id", "label"), tp53)
    with tp53.open(encoding="utf-8") as file:
        known = {row["case_id"]: row["subset"] for row in csv.DictReader(file)}
    assert {slide_id for slide_id, side in known.items() if side == "test"} == set(plan.rounds[0].test)
    hpv = LABELS / "tcga" / "xMIL_tcga_hnsc_hpv_cv3_0.csv"
    folds = read(from_csv(hpv, "case_id", "case_id", "label"), hpv)
    assert len(folds.rounds) == 3
    assert folds.made["val_drawn_in"] == [one.name for one in folds.rounds]
    tested = [slide_id for one in folds.rounds for slide_id in one.test]
    assert len(tested) == len(set(tested)) == len(folds.slides)
    assert all(one.val and not set(one.val) & set(one.test) for one in folds.rounds)


def test_labels_alone_are_refused_with_what_to_do() -> None:
    cohort = of_pairs([("a", "a", "x"), ("b", "b", "y")])
    for name in ("tcga/MHIM_label_tcga_nsclc.csv", "tcga/MHIM_label_luad_surv.csv", "camelyon16/ACMIL_camelyon16.csv"):
        with pytest.raises(CohortError, match="wsimil splits make"):
            read(cohort, LABELS / name)


def test_a_published_leak_is_found(tmp_path: Path) -> None:
    path = LABELS / "clam_splits" / "task_1_splits_0.csv"
    with path.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    first = rows[0]
    shared = {first["train"]: "same", first["test"]: "same"}
    with (LABELS / "clam_splits" / "tumor_vs_normal_dummy_clean.csv").open(encoding="utf-8") as file:
        labelled = {row["slide_id"]: row["label"] for row in csv.DictReader(file)}
    cohort = of_pairs([(s, shared.get(s, s), label) for s, label in labelled.items()])
    with pytest.raises(CohortError, match="patient 'same' is on two sides"):
        read(cohort, path)


def test_patients_in_a_file_stand_for_all_their_slides(tmp_path: Path) -> None:
    (tmp_path / "splits_3.csv").write_text(
        ",train,val,test\n0,p0,p4,p6\n1,p1,p5,p7\n2,p2,,\n3,p3,,\n", encoding="utf-8"
    )
    text = "slide_id,patient_id,label\n" + "".join(f"s{i}{j},p{i},{'ab'[i % 2]}\n" for i in range(8) for j in "xy")
    (tmp_path / "cohort.csv").write_text(text, encoding="utf-8")
    plan = read(read_cohort(tmp_path / "cohort.csv"), tmp_path / "splits_3.csv")
    assert counts(plan) == [(8, 4, 4)]


def test_a_name_of_a_slide_and_of_another_patient_is_refused(tmp_path: Path) -> None:
    rows = ["1,train", "2,val", "3,test", "4,train", "5,val"]
    (tmp_path / "splits.csv").write_text("\n".join(["slide_id,split", *rows, ""]), encoding="utf-8")
    numbers = [(str(i), str(i), "ab"[i % 2]) for i in range(1, 6)]
    assert counts(read(of_pairs(numbers), tmp_path / "splits.csv")) == [(2, 2, 1)]
    turned = of_pairs([(slide_id, str(6 - int(patient)), label) for slide_id, patient, label in numbers])
    with pytest.raises(
        CohortError, match=r"splits\.csv: '1' is a slide of patient '5' in the cohort and another patient"
    ):
        read(turned, tmp_path / "splits.csv")


@pytest.mark.parametrize(
    "rows",
    [
        ",train,val,test\ns0,True,False,False\ns1,True,False,False\n\ns2,False,True,False\ns3,False,True\n"
        "s4,False,False,True\ns5,False,False,True\n",
        "\n,train,val,test\n0,s0,s2,s4\n\n1,s1,s3,s5\n2\n",
        "slide_id,subset\ns0,train\ns1,train\n\ns2,val\ns3,val\ns4,test\ns5,test\n",
    ],
    ids=["flags", "names", "column"],
)
def test_empty_lines_and_rows_cut_short_say_nothing(rows: str, tmp_path: Path) -> None:
    (tmp_path / "splits_0.csv").write_text(rows, encoding="utf-8")
    cohort = of_pairs([(f"s{i}", f"p{i}", "ab"[i % 2]) for i in range(6)])
    assert counts(read(cohort, tmp_path / "splits_0.csv")) == [(2, 2, 2)]


def test_a_number_of_a_fold_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "folds.csv").write_text("slide_id,fold\ns0,²\ns1,³\ns2,²\n", encoding="utf-8")
    with pytest.raises(CohortError, match="'²' is no side; wanted train, val, test or fold numbers"):
        read(of_pairs([(f"s{i}", f"p{i}", "ab"[i % 2]) for i in range(3)]), tmp_path / "folds.csv")


@pytest.mark.parametrize("word", ["val", "valid", "validation"])
def test_slides_to_be_chosen_on_are_not_tested_on_whatever_they_are_called(word: str, tmp_path: Path) -> None:
    sides = ["train", "train", word, word, "test", "test"]
    cohort = of_pairs([(f"s{i}", f"p{i}", "nt"[i % 2]) for i in range(6)])
    file = tmp_path / "splits_3.csv"
    file.write_text("slide_id,subset\n" + "".join(f"s{i},{side}\n" for i, side in enumerate(sides)), encoding="utf-8")
    columns = tmp_path / "splits_10.csv"
    columns.write_text(f",train,{word},test\n0,s0,s2,s4\n1,s1,s3,s5\n", encoding="utf-8")
    for plan in (read(cohort, file), read(cohort, columns)):
        assert [ids for _, ids in plan.rounds[0].sides()] == [("s0", "s1"), ("s2", "s3"), ("s4", "s5")]


def test_folds_of_a_column_come_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    cohort = of_pairs([(f"s{i}", f"p{i}", "nt"[i % 2]) for i in range(44)])
    file = tmp_path / "folds.csv"
    file.write_text("slide_id,fold\n" + "".join(f"s{i},{i % 11}\n" for i in range(44)), encoding="utf-8")
    plan = read(cohort, file)
    assert [one.name for one in plan.rounds] == [str(number) for number in range(11)]
    assert plan.rounds[10].test == ("s10", "s21", "s32", "s43")
