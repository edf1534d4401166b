"""The `task` section of a config."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from wsimil.config import FrozenConfig
from wsimil.targets import Classification, MultiLabel, Ordinal, Regression, Survival, Task, TaskKind
from wsimil.targets.classification import refuse_class_names

_OWN: dict[str, tuple[TaskKind, ...]] = {
    "classes": ("classification",),
    "levels": ("ordinal",),
    "unit": ("regression", "survival"),
    "model": ("survival",),
    "bins": ("survival",),
    "horizons": ("survival",),
}


class TaskConfig(FrozenConfig):
    """What is to be learned, and in which columns of the cohort file it stands.

    `kind`: "classification" (two classes or more), "multilabel" (labels that do not exclude each other), "ordinal" (levels with
    an order), "regression" (numbers) or "survival" (a time, and whether the event was seen).
    `columns`: "label" by default, for survival "time" and "event"; for multilabel also several columns of 0 and 1, for
    regression one column of numbers or several. `classes`: of classification, by default the labels that occur, sorted; of two,
    sensitivity, specificity, predictive values and a threshold are those of the second. `levels`: of ordinal, lowest first.
    `unit`: of numbers or times, for people.
    Survival: `model` "hazard" (discrete time, in `bins` intervals) or "cox"; `horizons`, times at which survival is told.
    """

    kind: TaskKind = "classification"
    columns: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    levels: tuple[str, ...] = ()
    unit: str = ""
    model: Literal["hazard", "cox"] = "hazard"
    bins: int = Field(4, ge=2)
    horizons: tuple[float, ...] = ()

    @field_validator("classes", "levels", mode="before")
    @classmethod
    def _names_as_text(cls, value: object) -> object:
        """YAML reads a grade of 1 as a number; what it reads as true or false was written otherwise, and is refused."""
        return [str(one) if type(one) is int else one for one in value] if isinstance(value, list) else value

    @model_validator(mode="after")
    def _fits_its_kind(self) -> Self:
        for name, kinds in _OWN.items():
            if self.kind not in kinds and getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(
                    f"task.{name} means nothing for task.kind {self.kind}, it is for {' and '.join(kinds)}"
                )
        if self.kind == "survival" and self.model == "cox" and self.bins != type(self).model_fields["bins"].default:
            raise ValueError("task.bins means nothing for task.model cox, which has no intervals")
        if len(self.classes) == 1:
            raise ValueError(f"task.classes are two or more, got {self.classes[0]!r} alone")
        refuse_class_names(self.classes)
        self.build()
        return self

    def build(self) -> Task:
        """The task, before anything was learned of the cohort."""
        columns = self.columns or ("label",)
        if self.kind == "classification":
            return Classification(columns=columns, classes=self.classes)
        if self.kind == "multilabel":
            return MultiLabel(columns=columns)
        if self.kind == "ordinal":
            return Ordinal(columns=columns, levels=self.levels)
        if self.kind == "regression":
            return Regression(columns=columns, unit=self.unit)
        return Survival(
            columns=self.columns or ("time", "event"),
            model=self.model,
            unit=self.unit,
            bins=self.bins,
            horizons=self.horizons,
        )
