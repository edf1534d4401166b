"""How metrics are called and what they say, for people."""

from __future__ import annotations

from collections.abc import Mapping

from wsimil.targets import TaskKind

_TITLES: Mapping[str, tuple[str, str]] = {
    "auroc": ("AUROC", "chance that a row of the class scores above one that is not; 0.5 by chance"),
    "auprc": ("Average precision", "area under precision over recall; by chance the share of the class"),
    "auroc_macro": ("AUROC, mean over labels", "0.5 by chance"),
    "auprc_macro": ("Average precision, mean over labels", "by chance the mean share of the labels"),
    "auroc_macro_ovr": ("AUROC, mean over classes", "each class against the rest; 0.5 by chance"),
    "auprc_macro_ovr": ("Average precision, mean over classes", "each class against the rest"),
    "balanced_accuracy": ("Balanced accuracy", "mean recall of the classes; by chance one over their number"),
    "f1": ("F1", "harmonic mean of PPV and sensitivity"),
    "f1_macro": ("F1, macro mean", "each class counts the same"),
    "mcc": ("MCC", "Matthews correlation of truth and decision; 0 by chance, 1 at best"),
    "sensitivity": ("Sensitivity", "share of the class that is found"),
    "specificity": ("Specificity", "share of the others that are left alone"),
    "ppv": ("PPV", "share of what is found that is of the class; depends on how frequent it is"),
    "npv": ("NPV", "share of what is left alone that is not of the class; depends on how frequent it is"),
    "accuracy": ("Accuracy", "share of right decisions; high by chance where one class is frequent"),
    "brier": ("Brier score", "mean squared error of probabilities; lower is better"),
    "log_loss": ("Log loss", "nats; lower is better"),
    "ece_equal_width": ("ECE, bins of equal width", "expected calibration error; lower is better; biased upward"),
    "ece_equal_mass": ("ECE, bins of equal size", "expected calibration error; lower is better; biased upward"),
    "cohen_kappa_quadratic": ("Quadratic kappa", "agreement that counts how far off a level is; 0 by chance"),
    "mae_rank": ("Mean distance in levels", "lower is better"),
    "mae": ("MAE", "mean absolute error, in the unit of the truth; lower is better"),
    "rmse": ("RMSE", "root of the mean squared error, in the unit of the truth; lower is better"),
    "r2": ("R²", "share of the variance that is explained; at most 1, below 0 if worse than the mean"),
    "pearson": ("Pearson r", "linear correlation"),
    "spearman": ("Spearman ρ", "correlation of ranks"),
    "harrell_c": ("Harrell's C", "share of comparable pairs in the right order; 0.5 by chance"),
    "uno_c": ("Uno's C", "the same, weighed for censoring; 0.5 by chance"),
    "integrated_brier": (
        "Integrated Brier score",
        "over the horizons beyond which some were followed; lower is better",
    ),
}
_AT: Mapping[str, tuple[str, str]] = {
    "auc_at_": ("AUC at {}", "events until then against those free of it after; 0.5 by chance"),
    "brier_at_": ("Brier score at {}", "squared error of predicted survival; lower is better"),
}
_HEADLINES: Mapping[TaskKind, tuple[str, ...]] = {
    "classification": (
        "auroc", "auroc_macro_ovr", "auprc", "balanced_accuracy", "sensitivity", "specificity", "f1_macro", "brier",
    ),
    "multilabel": ("auroc_macro", "auprc_macro", "balanced_accuracy_macro", "f1_macro", "brier_macro"),
    "ordinal": ("cohen_kappa_quadratic", "mae_rank", "auroc_macro_ovr", "balanced_accuracy", "brier"),
    "regression": ("mae", "rmse", "r2", "spearman", "pearson"),
    "survival": ("harrell_c", "uno_c", "integrated_brier"),
}  # fmt: skip
_BOUNDS: Mapping[str, tuple[float, float]] = {
    "mcc": (-1.0, 1.0), "cohen_kappa_quadratic": (-1.0, 1.0), "pearson": (-1.0, 1.0), "spearman": (-1.0, 1.0),
}  # fmt: skip
_OF_ONE_CLASS = frozenset({"auprc", "f1", "sensitivity", "specificity", "ppv", "npv"})
_UNBOUNDED = frozenset({"mae", "rmse", "mae_rank", "log_loss", "r2", "brier"})


def title_of(metric: str, *, positive: str = "") -> str:
    """A metric's name for people; `positive` as in `of_class`."""
    return _described(metric)[0] + of_class(metric, positive)


def of_class(metric: str, positive: str) -> str:
    """What belongs behind the name of a metric that is of one class of two, `positive`; nothing behind others."""
    return f" for {positive}" if positive and metric in _OF_ONE_CLASS else ""


def meaning_of(metric: str) -> str:
    """What a metric says, in a few words."""
    return _described(metric)[1]


def headlines(kind: TaskKind, metrics: Mapping[str, object]) -> tuple[str, ...]:
    """The metrics that stand first, of those that are there."""
    chosen = [name for name in _HEADLINES[kind] if name in metrics]
    if kind == "survival":
        chosen += [name for name in metrics if name.startswith("auc_at_")][:3]
    return tuple(chosen)


def of_labels(kind: TaskKind, metrics: Mapping[str, object]) -> tuple[str, ...]:
    """The metric that stands first, of each label that it is there of."""
    stem = _HEADLINES[kind][0].removesuffix("_macro")
    return tuple(name for name in metrics if name.startswith(f"{stem}:"))


def bounds_of(metric: str) -> tuple[float, float] | None:
    """The least and highest value that a metric can have, None where there is none."""
    stem = metric.partition(":")[0].removesuffix("_macro")
    return None if stem in _UNBOUNDED else _BOUNDS.get(stem, (0.0, 1.0))


def _described(metric: str) -> tuple[str, str]:
    stem, colon, of = metric.partition(":")
    if stem in _TITLES:
        title, meaning = _TITLES[stem]
    elif stem.removesuffix("_macro") in _TITLES:
        title, meaning = _TITLES[stem.removesuffix("_macro")]
        title += ", mean over labels"
    else:
        title, meaning = stem, ""
        for prefix, (form, said) in _AT.items():
            if stem.startswith(prefix):
                title, meaning = form.format(stem.removeprefix(prefix)), said
    return (f"{title}: {of}" if colon else title), meaning
