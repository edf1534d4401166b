"""The contract of a method: packed bags in, logits, embeddings and terms of a loss out."""
# ruff: noqa: F722  # jaxtyping's dimension strings are no forward references

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, NoReturn

import torch
from jaxtyping import Float
from torch import Tensor, nn

from wsimil.config import FrozenConfig
from wsimil.errors import ConfigError, ModelError
from wsimil.mil.batch import BagBatch, BagOutput, ClassScores, Contributions, LeftOut, LossTerms, StepContext, chunks
from wsimil.mil.layers.embedding import InstanceEmbedding
from wsimil.mil.layers.standardize import Standardize
from wsimil.targets import Survival, Task


@dataclass(frozen=True, slots=True, kw_only=True)
class ParamGroup:
    """Parameters that an optimizer treats alike: with weight decay, or without."""

    parameters: tuple[nn.Parameter, ...]
    decay: bool


MOST_ROWS = 2048
"""Instances of a bag that are embedded at once at inference: of 1024 features in float32 8 MB, which stay in a cache."""


class MILModel(nn.Module, ABC):
    """A method. Hyperparameters are its `Config`; what the data knows, `in_dim` D and `num_classes` C, is given beside.

    C is the number of logits: of classes, or of whatever a task asks. A method does not know which task it serves, and sees of
    it the criterion of a step alone; one whose own loss or choices need classes says so in `check_task`.
    A method makes its `embed`, and writes `aggregate`, and `loss_terms` where its loss has more terms than the bag's. Between
    `embed_instances` and `aggregate` lie the embedded instances h: whoever drops instances, or adds some, does it there.
    Standardization also brings features to the dtype of the model. `nn.Module`'s train and eval modes have no meaning here:
    `forward` never drops or masks anything, `losses` does.
    """

    Config: ClassVar[type[FrozenConfig]]
    embed: InstanceEmbedding
    without_gradient: frozenset[str] = frozenset()
    """Names of parameters whose gradient is always zero, such as a bias before a softmax; every other one must learn."""

    takes_masking: bool = False
    """Whether a training step's `masking` acts on the scores of this method; a run that asks others for it is
    refused, also those that mask by themselves."""

    in_training_only: ClassVar[frozenset[str]] = frozenset({"init"})
    """Hyperparameters that change no answer, beside all dropouts and weights of losses."""

    embedding_parts: int = 1
    """Of how many vectors, one after another, `BagOutput.embedding` is made: of one for each class in some methods."""

    mixes_instances: bool = False
    """Whether an instance is changed by others and by its place among them: equal instances may then weigh differently."""

    picks_instances: bool = False
    """Whether an answer rests on a few instances picked by rank: rounding may then pick others."""

    shows_each_alone: bool = False
    """Whether a heatmap shows each instance's own answer, which the bag's follows more closely than contributions
    (`benchmarks/faithfulness.py`).
    """

    def __init__(self, config: FrozenConfig, *, in_dim: int, num_classes: int) -> None:
        super().__init__()
        self.config = config
        self.in_dim = in_dim
        self.num_classes = num_classes
        self.standardize = Standardize(in_dim)

    def forward(self, bags: BagBatch) -> BagOutput:
        """Inference: deterministic, blind to targets. Raises ModelError where D is not that of the model."""
        return self.aggregate(self.embed_instances(bags, None), bags, None)

    def losses(self, bags: BagBatch, step: StepContext) -> LossTerms:
        """One training step's loss. Raises ValueError for bags without targets."""
        return self.loss_terms(self.embed_instances(bags, step), bags, step)

    def contributions(self, bags: BagBatch) -> Contributions | None:
        """How much each instance adds to each logit, where the method splits exactly; None where it does not."""
        return self.split(self.embed_instances(bags, None), bags, None)

    def warm_start(self, other: MILModel) -> None:
        """Take the weights of a trained model to begin with. Raises ModelError for one that answers otherwise or is built so."""
        self.check_answers_alike(other)
        ours, theirs = ({name: tuple(value.shape) for name, value in m.state_dict().items()} for m in (self, other))
        if ours != theirs:
            different = sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))
            raise ModelError(
                f"a warm start needs a model built like this {type(self).__name__}, got a {type(other).__name__}; these weights"
                f" do not fit: {', '.join(different[:6])}"
            )
        self.load_state_dict(other.state_dict())

    def check_answers_alike(self, other: MILModel) -> None:
        """Raises ModelError where the same weights would answer otherwise: another method, or hyperparameters that matter."""
        if type(self) is not type(other):
            raise ModelError(
                f"a warm start needs a model built like this {type(self).__name__}, got a {type(other).__name__}"
            )
        ours, theirs = (_of_answers(m.config, self.in_training_only) for m in (self, other))
        different = [f"{name} {theirs[name]!r} -> {ours[name]!r}" for name in ours if ours[name] != theirs[name]]
        if different:
            raise ModelError(
                f"a warm start needs a {type(self).__name__} of the same hyperparameters; these differ: {', '.join(different)}"
            )

    def check_task(self, task: Task) -> None:
        """Raises ConfigError where the method's own loss or choices mean nothing for `task`."""

    def param_groups(self) -> list[ParamGroup]:
        """What the optimizer moves; matrices decay, biases and other vectors do not."""
        learned = [parameter for parameter in self.parameters() if parameter.requires_grad]
        matrices = tuple(parameter for parameter in learned if parameter.ndim > 1)
        vectors = tuple(parameter for parameter in learned if parameter.ndim <= 1)
        groups = [ParamGroup(parameters=matrices, decay=True), ParamGroup(parameters=vectors, decay=False)]
        return [group for group in groups if group.parameters]

    def after_step(self, step: StepContext) -> None:
        """Called without gradients after each step of the optimizer; a teacher moves here."""

    def embed_instances(self, bags: BagBatch, step: StepContext | None) -> Float[Tensor, "T L"]:
        """Each instance by itself, brought to the width that the method works in; `step` is None at inference.

        On CPU, of a long bag some rows at a time where nothing is learnt: all of its features in the dtype of the model would be
        the most that an answer takes. Parts begin anew with each bag, which so gets the same bits alone and in a pack.
        """
        learns = step is not None or torch.is_grad_enabled()
        if learns or bags.features.device.type != "cpu" or max(bags.lengths) <= MOST_ROWS:
            return self.embed_rows(bags, step)
        h: Tensor | None = None
        for place, part in chunks(bags, MOST_ROWS):
            rows = self.embed_rows(part, None)
            if h is None:
                h = rows.new_empty(len(bags.features), rows.shape[1])
            h[place] = rows
        if h is None:
            raise TypeError("a pack holds one bag or more")
        return h

    def embed_rows(self, bags: BagBatch, step: StepContext | None) -> Float[Tensor, "T L"]:
        """`embed_instances` of few enough instances to go at once.

        Here `embed` on standardized features; a method that does otherwise passes them through `standardize` too.
        """
        h: Tensor = self.embed(self.standardize(bags.features), bags, step)
        return h

    @abstractmethod
    def aggregate(self, h: Float[Tensor, "T L"], bags: BagBatch, step: StepContext | None) -> BagOutput:
        """The method itself, on embedded instances of `bags`, whose features it does not read.

        `step` is None at inference, and then nothing is drawn, dropped or masked.
        """

    def split(self, h: Float[Tensor, "T L"], bags: BagBatch, step: StepContext | None) -> Contributions | None:
        """`aggregate` with its logits split over the instances; None where the method does not split exactly."""
        return None

    def linearized(
        self, x: Float[Tensor, "T L"], bags: BagBatch, *, at: Float[Tensor, "T L"]
    ) -> Float[Tensor, "B C"] | None:
        """The logits that embedded instances `x` would have if all that is not linear in them were as it is at `at`.

        Held at `at` are weights of attention, deviations that norms divide by, gates of activations and what a maximum picks.
        Affine in `x`, through which alone gradients pass, and at `x = at` the logits of `aggregate`. The parts that instances
        have in it are their relevance by layer-wise relevance propagation with constant attention: Ali et al. 2022, ICML,
        arXiv:2202.07304; for multiple instances Hense et al. 2024, NeurIPS, arXiv:2406.04280. None where a method has no rule.
        """
        return None

    def alone(self, h: Float[Tensor, "T L"]) -> Float[Tensor, "T C"] | None:
        """Logits of bags that are one embedded instance each, where it takes less than `aggregate`; None where it does not."""
        return None

    def left_out(self, h: Float[Tensor, "T L"], bags: BagBatch) -> LeftOut | None:
        """What each logit loses with each embedded instance, where a closed form tells it; None where the method has none."""
        return None

    def class_scores(self, h: Float[Tensor, "T L"], bags: BagBatch, step: StepContext | None) -> ClassScores | None:
        """`aggregate` with how each instance alone speaks for each class: its part of the logits, where these split."""
        split = self.split(h, bags, step)
        return None if split is None else ClassScores(output=split.output, values=split.values)

    def of_nothing(self, h: Float[Tensor, "0 L"], step: StepContext | None) -> BagOutput:
        """What official code answers for a bag whose every instance was masked. Raises ModelError for a method that cannot."""
        raise ModelError(f"{type(self).__name__} has no answer for a bag whose every instance is masked; mask fewer")

    def loss_terms(self, h: Float[Tensor, "T L"], bags: BagBatch, step: StepContext) -> LossTerms:
        """The loss of a training step on embedded instances of `bags`, which have targets."""
        output = self.aggregate(h, bags, step)
        return LossTerms(output=output, terms={"bag": step.criterion(output.logits, bags.known_targets)})


def refuse_task(method: str, task: Task, why: str) -> NoReturn:
    """Raise the ConfigError of a method that cannot serve a task."""
    model = f" with task.model {task.model}" if isinstance(task, Survival) else ""
    raise ConfigError(
        f"method {method!r} does not serve task.kind {task.kind}{model}: {why}; choose another method, such as abmil"
    )


def _of_answers(config: FrozenConfig, in_training_only: frozenset[str]) -> dict[str, object]:
    """The hyperparameters that an answer hangs on."""
    return {
        name: value
        for name, value in config.model_dump(mode="json").items()
        if name not in in_training_only and not name.endswith(("dropout", "_weight"))
    }
