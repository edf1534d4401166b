"""What no run of a study could do is refused when it is planned, and not after the features of ten thousand slides are made."""

from __future__ import annotations

from collections.abc import Sequence

from wsimil.cohort import Cohort, read_cohort
from wsimil.errors import ConfigError, WsimilError
from wsimil.evaluation.decision import check_decision
from wsimil.mil import registry
from wsimil.mil.saved import TrainedModel
from wsimil.splits import read_plan as read_splits
from wsimil.stages.predict import refuse_unknown_score
from wsimil.stages.predict_options import PredictOptions
from wsimil.stages.study.config import StudyConfig
from wsimil.stages.train import plan
from wsimil.stages.work_items import WorkItem
from wsimil.training.fit import fitted_task
from wsimil.training.objective import resolved

_ANY_DIM = 64


def refuse_impossible(item: WorkItem, slides: frozenset[str], *, there: bool, asked: PredictOptions | None) -> None:
    """Raise the error that the run would end with, or its answers, as far as it can be known now; `there`: features are.

    Raises WsimilError that names the config.
    """
    config = item.config
    try:
        if there:
            planned = plan(config, item.features, item.cohort)
            cohort, in_dim = planned.cohort, planned.in_dim
        else:
            cohort, in_dim = _expected(item, slides), _ANY_DIM
        task = fitted_task(cohort.by_patient() if config.bag == "patient" else cohort)
        resolved(config.fit, task)
        check_decision(config.decision, task)
        hyperparameters = dict(config.method)
        name = str(hyperparameters.pop("name", "abmil"))
        model = registry.build(name, hyperparameters, in_dim=in_dim, num_classes=len(task.outputs))
        model.check_task(task)
        if asked is not None:
            made_up = TrainedModel(model=model.eval(), method=name, task=task, features=None, training={}, digest="")
            refuse_unknown_score(made_up, asked)
    except WsimilError as error:
        raise type(error)(f"config {item.name.split('/')[0]}: {error}") from None


def refuse_untested(config: StudyConfig, items: Sequence[WorkItem]) -> None:
    """Raises ConfigError where nobody is left to be asked about or reported on, as inner rounds have no test split."""
    if config.splits is None:
        return
    plan_of = read_splits(config.splits)
    rounds = [plan_of.round(name) for name in dict.fromkeys(item.config.split.round for item in items)]
    without = [one.name for one in rounds if not one.test]
    if without and config.predict is not None and config.predict.slides == "test":
        raise ConfigError(
            f"predict asks about test splits, and rounds {', '.join(without[:5])} of {config.splits} have none; leave these"
            " rounds out, or say predict.slides: all"
        )
    if len(without) == len(rounds) and config.report:
        raise ConfigError(
            f"a report is on test splits, and rounds {', '.join(without[:5])} of {config.splits} have none; say report: false"
        )


def _expected(item: WorkItem, slides: frozenset[str]) -> Cohort:
    """The cohort of a round, were features of all its slides there."""
    config, split = item.config, item.config.split
    cohort = read_cohort(item.cohort, task=config.task.build(), bag=config.bag).matched(sorted(slides), empty_ids=[])
    return cohort if split.file is None else read_splits(split.file).in_round(cohort, split.round, bag=config.bag)
