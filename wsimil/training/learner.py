"""A model that learns: weights, optimizer, averages and the generator of all draws, moved by one step and kept as one state."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from wsimil.mil.base import MILModel
from wsimil.mil.batch import BagBatch, StepContext
from wsimil.mil.criterion import Criterion
from wsimil.mil.regularizers.attention_entropy import attention_entropy
from wsimil.training.augmentation import augmented
from wsimil.training.averaging import WeightAverage
from wsimil.training.checkpoint import load_optimizer, optimizer_tensors, part
from wsimil.training.config import FitConfig
from wsimil.training.optimizer import Lookahead, make_optimizer


@dataclass(frozen=True, slots=True, kw_only=True)
class StepReport:
    """What a step came to: the loss, its terms by name, the norm of the gradient, and whether all of it is finite."""

    loss: float
    terms: Mapping[str, float]
    gradient_norm: float
    finite: bool


class Learner:
    """`config` is resolved, the model lies where it is to learn, `generator` on the CPU."""

    def __init__(
        self, model: MILModel, config: FitConfig, *, criterion: Criterion, generator: torch.Generator, device: str
    ) -> None:
        self.model, self.config, self.generator = model, config, generator
        self._criterion, self._kind = criterion, torch.device(device).type
        groups = model.param_groups()
        self._parameters = [parameter for group in groups for parameter in group.parameters]
        self.optimizer = make_optimizer(
            config.optimizer,
            groups,
            lr=config.lr,
            weight_decay=config.weight_decay,
            decay_vectors=config.decay_vectors,
            betas=config.betas,
        )
        self._lookahead = Lookahead(self._parameters) if config.optimizer == "lookahead_radam" else None
        self._average = None if config.average is None else WeightAverage(model, config.average)

    @property
    def lr(self) -> float:
        """The learning rate of the last move."""
        return float(self.optimizer.param_groups[0]["lr"])

    def step(self, bags: BagBatch, *, progress: float, moved: float, place: int, of: int) -> StepReport:
        """One step on `bags`, number `place` of the `of` whose gradients are averaged; weights move after the last.

        `progress` in [0, 1] is that of the training, `moved` what the schedule goes by. Weights do not move where the report is
        not finite.
        """
        config = self.config
        if config.augmentation.is_on:
            fitted = self.model.standardize
            bags = augmented(bags, config.augmentation, mean=fitted.mean, scale=fitted.scale, generator=self.generator)
        step = StepContext(
            generator=self.generator, progress=progress, criterion=self._criterion, masking=config.masking
        )
        if place == 0:
            for group in self.optimizer.param_groups:
                group["lr"] = config.lr * config.schedule.factor_at(moved)
        with torch.autocast(self._kind, dtype=torch.bfloat16, enabled=config.precision == "bfloat16"):
            terms = self.model.losses(bags, step)
        total = terms.total
        named = {name: float(term.detach()) for name, term in terms.terms.items()}
        weight = config.entropy.weight_at(progress)
        entropy = attention_entropy(terms.output, terms.seen or bags, top_k=config.entropy.top_k) if weight else None
        if entropy is not None:
            total = total + weight * entropy
            named["attention_entropy"] = float(entropy.detach())
        if place == 0:
            self.optimizer.zero_grad(set_to_none=True)
        (total / of).backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        moves = place + 1 == of
        limit = config.clip_norm if config.clip_norm is not None and moves else float("inf")
        norm = torch.nn.utils.clip_grad_norm_(self._parameters, limit)
        finite = bool(torch.isfinite(total) and torch.isfinite(norm))
        if moves and finite:
            self._move(step)
        return StepReport(loss=float(total.detach()), terms=named, gradient_norm=float(norm), finite=finite)

    def _move(self, step: StepContext) -> None:
        self.optimizer.step()
        if self._lookahead is not None:
            self._lookahead.step()
        with torch.no_grad():
            self.model.after_step(step)
        if self._average is not None:
            self._average.update()

    @contextmanager
    def answering(self) -> Iterator[MILModel]:
        """The model with the weights that answer: the average, where there is one."""
        with nullcontext() if self._average is None else self._average.applied(), torch.no_grad():
            yield self.model

    def answering_weights(self) -> dict[str, Tensor]:
        """A copy of the weights that answer, on the CPU."""
        state = self.model.state_dict() if self._average is None else self._average.averaged
        return {name: tensor.detach().cpu().clone() for name, tensor in state.items()}

    def tensors(self) -> dict[str, Tensor]:
        """All that a resumed run needs."""
        return {
            **{f"model.{name}": tensor for name, tensor in self.model.state_dict().items()},
            **optimizer_tensors(self.optimizer),
            **({} if self._lookahead is None else self._lookahead.tensors()),
            **({} if self._average is None else self._average.tensors()),
            "generator": self.generator.get_state(),
        }

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """The inverse of `tensors`."""
        self.model.load_state_dict(part(tensors, "model."))
        load_optimizer(self.optimizer, tensors)
        if self._lookahead is not None:
            self._lookahead.load(tensors)
        if self._average is not None:
            self._average.load(tensors)
        self.generator.set_state(tensors["generator"])
