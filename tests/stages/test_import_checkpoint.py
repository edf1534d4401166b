"""Weights of official code become runs that answer what the official code answers."""

from __future__ import annotations

import csv
import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from wsimil.errors import ConfigError, ModelError
from wsimil.mil.batch import pack
from wsimil.mil.saved import load_model
from wsimil.stages.import_checkpoint import ImportConfig, import_checkpoint
from wsimil.stages.predict import predict
from wsimil.stages.predict_options import PredictOptions
from wsimil.store import open_store
from wsimil.testing.store_laws import make_bag

pytestmark = pytest.mark.shared
FILES = {
    "acmil": ("acmil/mha_eval_t5_N37", "out.logits", {}),
    "aem": ("aem/abmil_l0.1_N37", "eval.logits", {}),
    "clam": ("clam/sb_b8_N37", "eval.logits", {}),
    "dsmil": ("dsmil/nl_C2_N37", "out.logits", {}),
    "mhim": ("mhim_v1/step_selfattn_c16_N37", "eval.student.logits", {}),
    "mil_lab": ("abmil/millab_abmil_N37", "out.logits", {}),
    "rrt": ("rrt/epeg21_k5_N37", "out.logits", {}),
    "transmil": ("transmil/transmil_N37", "out.logits", {"landmarks": 16}),
}


def recorded(shared_dir, name):
    with np.load(shared_dir / "golden" / f"{name}.npz") as file:
        return {key: file[key] for key in file.files}


def state_of(arrays):
    return {key.removeprefix("state."): torch.from_numpy(v) for key, v in arrays.items() if key.startswith("state.")}


def bring(file, source, out, **given):
    options = ImportConfig(method=given.pop("method", {}))
    return import_checkpoint(file, source, out, config=options, **given)


@pytest.mark.parametrize("source", sorted(FILES))
def test_an_imported_run_answers_as_the_official_code_did(shared_dir, tmp_path, source):
    name, key, method = FILES[source]
    arrays = recorded(shared_dir, name)
    state = state_of(arrays)
    if source == "mhim":
        pairs = {
            who: {k.removeprefix(f"{who}."): v for k, v in state.items() if k.startswith(who)}
            for who in ("student", "teacher")
        }
        state = {"model": pairs["student"], "teacher": pairs["teacher"]}
    torch.save(state, tmp_path / "official.pth")
    if source == "transmil":
        facts = json.loads(str(arrays["config"]))
        method = {"landmarks": facts["num_landmarks"], "iterations": facts["pinv_iterations"]}
    bring(tmp_path / "official.pth", source, tmp_path / "run", method=method)
    x = arrays["in.x"]
    rows = np.stack([np.arange(len(x)), np.zeros(len(x), np.int64)], axis=1)
    logits = load_model(tmp_path / "run").model(pack([x], xy0=[rows], slide_ids=["bag"])).logits.detach().numpy()
    np.testing.assert_allclose(logits, arrays[key], rtol=2e-5, atol=1e-6)


def test_groups_of_dtfd_are_read_as_its_checkpoints_hold_them(shared_dir, tmp_path):
    state = state_of(recorded(shared_dir, "dtfd/afs_g4_N7"))
    groups: dict[str, dict[str, torch.Tensor]] = {}
    for key, value in state.items():
        group, _, rest = key.partition(".")
        groups.setdefault(group, {})[rest] = value
    torch.save(groups, tmp_path / "dtfd.pth")
    summary = bring(tmp_path / "dtfd.pth", "dtfd", tmp_path / "run", classes=("a", "b"))
    assert (summary.method, summary.in_dim, summary.classes) == ("dtfd", 64, ("a", "b"))


@pytest.mark.parametrize(
    ("file", "source", "dim", "method"),
    [("DSMIL_c16_aggregator.pth", "dsmil", 512, "dsmil"), ("xMIL_camelyon16_attnmil.pt", "xmil", 768, "abmil")],
)
def test_published_heads_predict(shared_dir, tmp_path, file, source, dim, method):
    path = shared_dir / "data/mil_checkpoints" / file
    summary = bring(path, source, tmp_path / "run")
    assert (summary.method, summary.in_dim, summary.classes) == (method, dim, ("negative", "positive"))
    store = open_store(tmp_path / "features", mode="w")
    for number in range(2):
        store.write(make_bag(f"s{number}", n=30 + number, dim=dim))
    answers = predict(tmp_path / "run", tmp_path / "features", tmp_path / "out", options=PredictOptions(heatmaps=False))
    assert not answers.failures
    assert "without saying on which features it was trained" in answers.notes[0]
    with (tmp_path / "out/predictions.csv").open() as table:
        rows = list(csv.DictReader(table))
    assert [float(r["prob_negative"]) + float(r["prob_positive"]) for r in rows] == pytest.approx([1, 1])


def test_one_logit_becomes_two_classes_with_its_sigmoid_as_the_probability(shared_dir, tmp_path):
    path = shared_dir / "data/mil_checkpoints/DSMIL_c16_aggregator.pth"
    state = torch.load(path, weights_only=True, map_location="cpu")
    bring(path, "dsmil", tmp_path / "run")
    x = torch.randn(25, 512, generator=torch.Generator().manual_seed(0))
    model = load_model(tmp_path / "run").model
    got = model(pack([x], xy0=[torch.zeros(25, 2, dtype=torch.int64)], slide_ids=["bag"])).logits

    def linear(name, value):
        return value @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    scores = linear("i_classifier.fc.0", x)[:, 0]
    queries = linear("b_classifier.q.2", linear("b_classifier.q.0", x).relu()).tanh()
    weights = (queries @ queries[scores.argmax()] / 128**0.5).softmax(dim=0)
    wanted = (state["b_classifier.fcc.weight"][0, 0] * (weights @ x)).sum() + state["b_classifier.fcc.bias"][0]
    torch.testing.assert_close(got[0, 1], wanted)
    assert got[0, 0] == 0


def test_keys_too_many_or_too_few_are_named_and_nothing_is_written(shared_dir, tmp_path):
    state = state_of(recorded(shared_dir, "clam/sb_b8_N37"))
    torch.save({**state, "surprise.weight": torch.zeros(1)}, tmp_path / "more.pth")
    with pytest.raises(ModelError, match=r"unexpected keys \['surprise.weight'\]"):
        bring(tmp_path / "more.pth", "clam", tmp_path / "run")
    del state["attention_net.3.attention_c.weight"]
    torch.save(state, tmp_path / "less.pth")
    with pytest.raises(ModelError, match=r"missing \['attention.score.weight'\]"):
        bring(tmp_path / "less.pth", "clam", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_weights_that_are_not_finite_or_of_another_rrt_are_refused(shared_dir, tmp_path):
    state = state_of(recorded(shared_dir, "rrt/epeg21_k5_N37"))
    torch.save({**state, "predictor.bias": state["predictor.bias"] / 0}, tmp_path / "nan.pth")
    with pytest.raises(ModelError, match=r"classifier\.bias: NaN or infinity"):
        bring(tmp_path / "nan.pth", "rrt", tmp_path / "run")
    pe = "online_encoder.layers.0.attn.attn.pe"
    values = {f"{pe}.weight": torch.zeros(64, 1, 21, 1), f"{pe}.bias": torch.zeros(64)}
    torch.save({**state, **values}, tmp_path / "values.pth")
    with pytest.raises(ModelError, match="EPEG works on values"):
        bring(tmp_path / "values.pth", "rrt", tmp_path / "run")


def test_a_pickled_model_is_never_loaded(tmp_path):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "model.pth")
    with pytest.raises(ModelError, match=r"cannot be read as tensors.*it must be a state_dict"):
        bring(tmp_path / "model.pth", "clam", tmp_path / "run")
    (tmp_path / "text.pth").write_text("no checkpoint", encoding="ascii")
    with pytest.raises(ModelError, match="cannot be read as tensors"):
        bring(tmp_path / "text.pth", "clam", tmp_path / "run")
    torch.save({"epoch": 3, "args": {}}, tmp_path / "other.pth")
    with pytest.raises(ModelError, match="no state_dict that is known; its keys are epoch, args"):
        bring(tmp_path / "other.pth", "clam", tmp_path / "run")


def test_the_kind_of_features_is_checked_where_it_was_said(shared_dir, tmp_path):
    path = shared_dir / "data/mil_checkpoints/xMIL_camelyon16_attnmil.pt"
    store = open_store(tmp_path / "features", mode="w")
    store.write(make_bag("s", n=9, dim=768))
    summary = bring(path, "xmil", tmp_path / "run", features=tmp_path / "features")
    assert summary.features is not None
    answers = predict(tmp_path / "run", tmp_path / "features", tmp_path / "out", options=PredictOptions(heatmaps=False))
    assert answers.notes == ()
    store = open_store(tmp_path / "narrow", mode="w")
    store.write(make_bag("s", n=9, dim=8))
    with pytest.raises(ModelError, match="8 features an instance, the checkpoint takes 768"):
        bring(path, "xmil", tmp_path / "other", features=tmp_path / "narrow")


def test_slides_are_refused_where_the_kind_of_features_is_unknown(shared_dir, tmp_path):
    bring(shared_dir / "data/mil_checkpoints/xMIL_camelyon16_attnmil.pt", "xmil", tmp_path / "run")
    (tmp_path / "slides").mkdir()
    with pytest.raises(ConfigError, match="imported without saying on which features"):
        predict(tmp_path / "run", tmp_path / "slides", tmp_path / "out", options=PredictOptions())


def test_wrong_names_and_taken_folders_are_refused(shared_dir, tmp_path):
    path = shared_dir / "data/mil_checkpoints/xMIL_camelyon16_attnmil.pt"
    with pytest.raises(ConfigError, match="wanted 2 different names"):
        bring(path, "xmil", tmp_path / "run", classes=("a", "a"))
    with pytest.raises(ModelError, match="unknown source 'camil'"):
        bring(path, "camil", tmp_path / "run")
    bring(path, "xmil", tmp_path / "run", classes=("normal", "tumor"))
    with pytest.raises(ConfigError, match="holds a model already"):
        bring(path, "xmil", tmp_path / "run")
    (tmp_path / "run/predictions.csv").write_text("answers of what lay here", encoding="utf-8")
    bring(path, "xmil", tmp_path / "run", overwrite=True)
    assert {entry.name for entry in (tmp_path / "run").iterdir()} == {"model.json", "model.safetensors"}
    assert load_model(tmp_path / "run").task.classes == ("negative", "positive")


@pytest.mark.parametrize("name", ["predictions.json", "predictions.parquet", "cohort.csv", "model.safetensors"])
def test_a_folder_with_parts_of_another_model_is_refused(shared_dir, tmp_path, name):
    (tmp_path / name).write_text("of another model", encoding="utf-8")
    for overwrite, said in (
        (False, f"holds {name} and no model.json,.*choose another output folder$"),
        (True, "no run"),
    ):
        with pytest.raises(ConfigError, match=said):
            bring(shared_dir / "data/mil_checkpoints/xMIL_camelyon16_attnmil.pt", "xmil", tmp_path, overwrite=overwrite)
    assert [entry.name for entry in tmp_path.iterdir()] == [name]


def test_overwrite_spares_weights_that_wsimil_did_not_write(shared_dir, tmp_path):
    out = tmp_path / "out"
    mine = out / "checkpoint/clam.pt"
    mine.parent.mkdir(parents=True)
    shutil.copy(shared_dir / "data/mil_checkpoints/xMIL_camelyon16_attnmil.pt", mine)
    (out / "notes.txt").write_text("years of work", encoding="utf-8")
    with pytest.raises(ConfigError, match="holds files but no run"):
        bring(mine, "xmil", out, overwrite=True)
    bring(mine, "xmil", out)
    (out / "checkpoint/last.safetensors").write_bytes(b"of an earlier run")
    bring(mine, "xmil", out, overwrite=True)
    assert [entry.name for entry in mine.parent.iterdir()] == ["clam.pt"]
    assert (out / "notes.txt").is_file()


def test_overwrite_does_not_remove_the_checkpoint_that_it_imports(shared_dir, tmp_path):
    out = tmp_path / "out"
    mine = out / "checkpoint/last.safetensors"
    mine.parent.mkdir(parents=True)
    save_file(state_of(recorded(shared_dir, "clam/sb_b8_N37")), mine)
    with pytest.raises(ConfigError, match=r"last\.safetensors is of the run in .*out, and would go"):
        bring(mine, "clam", out, overwrite=True)
    assert mine.is_file()


def test_what_tensors_do_not_tell_is_said_and_can_be_set(shared_dir, tmp_path):
    state = state_of(recorded(shared_dir, "rrt/epeg21_k5_N37"))
    torch.save(state, tmp_path / "rrt.pth")
    summary = bring(tmp_path / "rrt.pth", "rrt", tmp_path / "run", method={"shortcut": True})
    assert summary.assumed == {"cross_heads": 8, "region_side": 8, "score_activation": "tanh"}
    assert json.loads((tmp_path / "run/model.json").read_text())["training"]["imported"]["assumed"] == summary.assumed
    pair = state_of(recorded(shared_dir, "mhim_v2/step_attn_k5r0.8_N37"))
    torch.save(
        {k.removeprefix("student."): v for k, v in pair.items() if k.startswith("student.")}, tmp_path / "mhim.pth"
    )
    assert bring(tmp_path / "mhim.pth", "mhim", tmp_path / "a").assumed == {
        "base.activation": "gelu",
        "base.score_activation": "relu",
        "recycle.heads": 8,
        "recycle.at_inference": False,
    }
    given = bring(tmp_path / "mhim.pth", "mhim", tmp_path / "b", method={"base": {"activation": "relu"}})
    assert set(given.assumed) == {"base.score_activation", "recycle.heads", "recycle.at_inference"}
    assert given.config.base["activation"] == "relu"
    assert given.config.base["hidden_dim"] == 32
