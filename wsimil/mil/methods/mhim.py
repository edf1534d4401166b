"""MHIM-MIL: a teacher tells which instances are easy, a student learns without them.

Version 1: Tang, Huang, Zhang, Zhou, Zhang & Liu 2023, "Multiple Instance Learning Framework with Masked Hard Instance Mining for
Whole Slide Image Classification", ICCV, arXiv:2307.15254. Version 2: Tang et al. 2025, IJCV, arXiv:2509.11526, which scores by
class and recycles what it leaves out. https://github.com/DearCaat/MHIM-MIL, branches v1 and master.

Teacher and student are the same `base`, any method of the registry that has what `score` asks for. What looks odd in the official
code and stays, to be configured: the teacher drops out like a student (`teacher_dropout`); the consistency loss compares the
numbers of two embeddings, not class probabilities. What would harm is put right, and is back with `compat: official`: a mask that
takes a whole bag leaves an empty one; a mask after one that took exactly one instance raises; kept instances come in the order of
a Python set, or of a random draw where some are recycled, although the base may care; recycled queries move before the backward
pass, which falsifies the gradient of their norm.
"""
# ruff: noqa: F722  # jaxtyping's dimension strings are no forward references

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float, Int64
from pydantic import Field, JsonValue, field_validator
from torch import Tensor, nn

from wsimil.config import FrozenConfig, parse_config
from wsimil.errors import ConfigError, ModelError
from wsimil.mil import registry
from wsimil.mil.base import MILModel, refuse_task
from wsimil.mil.batch import BagBatch, BagOutput, Contributions, LeftOut, LossTerms, StepContext, rows_of, take
from wsimil.mil.layers.momentum import consistency, follow, rising
from wsimil.mil.layers.recycle import RecycleNetwork
from wsimil.mil.masking import RankMasking
from wsimil.ops.segment_softmax import segment_softmax
from wsimil.ops.varlen import cu_seqlens_of, join_bags, split_bags
from wsimil.targets import Classification, Task


class RecycleConfig(FrozenConfig):
    """The global recycle network of version 2.

    Of what the mask kept, the share `keep` goes on as it is; the rest, drawn at random, comes back as `tokens` tokens. `momentum`
    is that of the queries. `at_inference` adds the tokens of all instances of a bag to it.
    """

    tokens: int = Field(5, ge=1)
    keep: float = Field(0.8, ge=0, lt=1)
    momentum: float = Field(0.9999, ge=0, le=1)
    heads: int = Field(8, ge=1)
    head_dim: int = Field(64, ge=1)
    dropout: float = Field(0.1, ge=0, lt=1)
    at_inference: bool = False


class MHIMConfig(FrozenConfig):
    """Hyperparameters of MHIM-MIL.

    `base`: the method of teacher and student, {name: ..., and its hyperparameters}. `mask`: what the student does not see.
    `score`: what the mask ranks instances by, as the teacher has it: "attention", the weights of each head; "instance", the
    highest raw logit of an instance, for bases that have these; "class", version 2's class-aware score, the highest probability
    of a class if an instance's part of the logits were all. `momentum` of the teacher, "cosine" lets it rise to 1 over training.
    `student_init`: what a warm start gives the student beside the teacher, "embedding" (official), "all" or "nothing".
    """

    base: dict[str, JsonValue] = Field(default_factory=lambda: _resolved(_OFFICIAL_BASE), validate_default=False)
    mask: RankMasking = RankMasking(random=0.5, high=0.01, high_share=0.5, decay=True)
    score: Literal["attention", "instance", "class"] = "attention"
    recycle: RecycleConfig | None = None
    momentum: float = Field(0.9999, ge=0, le=1)
    momentum_schedule: Literal["constant", "cosine"] = "constant"
    consistency_weight: float = Field(0.1, ge=0)
    teacher_temperature: float = Field(0.1, gt=0)
    student_temperature: float = Field(1.0, gt=0)
    teacher_dropout: bool = True
    student_init: Literal["embedding", "all", "nothing"] = "embedding"
    compat: Literal["wsimil", "official"] = "wsimil"

    @field_validator("base")
    @classmethod
    def _base_in_full(cls, base: dict[str, JsonValue]) -> dict[str, JsonValue]:
        return _resolved(base)


_OFFICIAL_BASE: dict[str, JsonValue] = {
    "name": "abmil",
    "hidden_dim": 512,
    "gated": False,
    "score_activation": "relu",
    "attention_bias": False,
    "init": "xavier_normal",
    "centered_classifier": False,
}


class Network(nn.Module):
    """What teacher and student both are. State: `method.*`, `recycle.*` where there is one."""

    recycle: RecycleNetwork | None

    def __init__(self, method: MILModel, recycle: RecycleNetwork | None) -> None:
        super().__init__()
        self.method = method
        self.recycle = recycle


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Lesson:
    """What the teacher makes of bags: their embedding, and the scores by which instances are ranked."""

    embedding: Float[Tensor, "B E"]
    scores: Float[Tensor, "T H"]


class MHIM(MILModel):
    """`scores = teacher(bag); student(bag without mask(scores))`; inference is the student on the whole bag.

    The loss is the base's, on what the student sees, and `consistency` of the student's embedding with the teacher's, which
    after each step moves to `momentum * teacher + (1 - momentum) * student`. `LossTerms.details`: `teacher_embedding`,
    `teacher_scores`, `kept` rows of the pack, `shown` instances and tokens. State: `standardize.*`, `student.*`, `teacher.*`.
    """

    Config = MHIMConfig
    in_training_only = frozenset(
        {
            "mask", "score", "momentum", "momentum_schedule", "teacher_temperature", "student_temperature", "student_init",
            "compat",
        }
    )  # fmt: skip

    def __init__(self, config: MHIMConfig, *, in_dim: int, num_classes: int) -> None:
        super().__init__(config, in_dim=in_dim, num_classes=num_classes)
        name, base = _parsed(config.base)
        method = registry.method_class(name)(base, in_dim=in_dim, num_classes=num_classes)
        width = method.embed_instances(_probe(in_dim), None).shape[1]
        recycle = config.recycle
        self.student = Network(
            method,
            None
            if recycle is None
            else RecycleNetwork(
                width, tokens=recycle.tokens, heads=recycle.heads, head_dim=recycle.head_dim, drop=recycle.dropout
            ),
        )
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)
        self.options = config
        self.official = config.compat == "official"
        self.takes_masking, self.mixes_instances = method.takes_masking, method.mixes_instances
        self.picks_instances = method.picks_instances
        self._adds_tokens = config.recycle is not None and config.recycle.at_inference
        self.shows_each_alone = method.shows_each_alone and not self._adds_tokens
        self.embedding_parts = method.embedding_parts
        self.without_gradient = frozenset(f"student.method.{name}" for name in method.without_gradient)
        self._recycled: list[Tensor] = []
        self.teach(_probe(in_dim), None)

    def check_task(self, task: Task) -> None:
        """See `MILModel.check_task`: the base's, and scores of classes need them."""
        self.student.method.check_task(task)
        if self.options.score != "attention" and not isinstance(task, Classification):
            refuse_task(
                "mhim", task, f"score {self.options.score} ranks tiles by their class; set method.score to attention"
            )

    def forward(self, bags: BagBatch) -> BagOutput:
        """The student on whole bags."""
        return self.aggregate(self.embed_instances(bags, None), bags, None)

    def losses(self, bags: BagBatch, step: StepContext) -> LossTerms:
        """One training step's loss. Raises ValueError for bags without targets."""
        if self.official and len(bags) > 1:
            raise ModelError(
                f"with compat official MHIM-MIL takes one bag a step, got {len(bags)}; set fit.batch_bags to 1"
            )
        seen = self._standardized(bags)
        lesson = self.teach(seen, step)
        kept = self._kept(lesson.scores, seen, step)
        terms = self._student_terms(seen, kept, step)
        parts = self.embedding_parts
        term = consistency(
            terms.output.embedding.view(len(bags) * parts, -1),
            lesson.embedding.view(len(bags) * parts, -1),
            student_temperature=self.options.student_temperature,
            teacher_temperature=self.options.teacher_temperature,
        )
        shown = len(bags.features) if terms.seen is None else len(terms.seen.features)
        return LossTerms(
            output=terms.output,
            terms={**terms.terms, "consistency": term},
            weights={**terms.weights, "consistency": self.options.consistency_weight},
            details={
                **terms.details,
                "teacher_embedding": lesson.embedding,
                "teacher_scores": lesson.scores,
                "kept": kept,
                "shown": torch.tensor(shown),
            },
            seen=terms.seen,
        )

    def split(self, h: Float[Tensor, "T L"], bags: BagBatch, step: StepContext | None) -> Contributions | None:
        """See `MILModel.split`: the student's, unless tokens are added to the bag."""
        if self._adds_tokens:
            return None
        return self.student.method.split(h, bags, step)

    def embed_rows(self, bags: BagBatch, step: StepContext | None) -> Float[Tensor, "T L"]:
        """See `MILModel.embed_rows`."""
        return self.student.method.embed_rows(self._standardized(bags), step)

    def aggregate(self, h: Float[Tensor, "T L"], bags: BagBatch, step: StepContext | None) -> BagOutput:
        """See `MILModel.aggregate`: the student's."""
        network, recycle = self.student, self.options.recycle
        if network.recycle is None or recycle is None or not recycle.at_inference:
            return network.method.aggregate(h, bags, step)
        tokens = [network.recycle(part, step) for part in split_bags(h, bags.cu_seqlens)]
        h, more = self._with_tokens(h, bags, tokens)
        return _first_rows(network.method.aggregate(h, more, step), more, len(network.recycle.queries))

    def linearized(
        self, x: Float[Tensor, "T L"], bags: BagBatch, *, at: Float[Tensor, "T L"]
    ) -> Float[Tensor, "B C"] | None:
        """See `MILModel.linearized`: the student's, whose tokens, where it has any, are linear in instances too."""
        network, recycle = self.student, self.options.recycle
        if network.recycle is None or recycle is None or not recycle.at_inference:
            return network.method.linearized(x, bags, at=at)
        with torch.no_grad():
            tokens = [network.recycle(part, None) for part in split_bags(at, bags.cu_seqlens)]
            at_all, more = self._with_tokens(at, bags, tokens)
        parts = zip(split_bags(x, bags.cu_seqlens), split_bags(at, bags.cu_seqlens), strict=True)
        held = [network.recycle.held(part, at=place) for part, place in parts]
        return network.method.linearized(self._with_tokens(x, bags, held)[0], more, at=at_all)

    def alone(self, h: Float[Tensor, "T L"]) -> Float[Tensor, "T C"] | None:
        """See `MILModel.alone`: the student's, unless tokens are added to the bag."""
        if self._adds_tokens:
            return None
        return self.student.method.alone(h)

    def left_out(self, h: Float[Tensor, "T L"], bags: BagBatch) -> LeftOut | None:
        """See `MILModel.left_out`: the student's; tokens that are added to a bag change with each of its instances."""
        if self._adds_tokens:
            return None
        return self.student.method.left_out(h, bags)

    @torch.no_grad()
    def warm_start(self, other: MILModel) -> None:
        """Begin from a trained `base`: the teacher is it, the student has of it what `student_init` says.

        Raises ModelError for a model of another method or of other sizes.
        """
        if isinstance(other, MHIM):
            super().warm_start(other)
            return
        self.teacher.method.check_answers_alike(other)
        self.standardize.load_state_dict(other.standardize.state_dict())
        state = {name: value for name, value in other.state_dict().items() if not name.startswith("standardize.")}
        networks = {"embedding": [self.teacher], "all": [self.teacher, self.student], "nothing": [self.teacher]}
        for network in networks[self.options.student_init]:
            _load(network.method, state)
        if self.options.student_init == "embedding":
            embedding = {name: value for name, value in state.items() if name.startswith("embed.")}
            _load(self.student.method, {**_plain(self.student.method), **embedding})

    @torch.no_grad()
    def teach(self, bags: BagBatch, step: StepContext | None) -> Lesson:
        """The teacher on whole, standardized bags. Raises ConfigError where its method has no such score."""
        method = self.teacher.method
        own = None if step is None or not self.options.teacher_dropout else replace(step, masking=None)
        h = method.embed_instances(bags, own)
        if self.options.score == "class":
            scored = method.class_scores(h, bags, own)
            if scored is not None:
                scores = scored.values.softmax(dim=1).amax(dim=1, keepdim=True)
                return Lesson(embedding=scored.output.embedding, scores=scores)
        else:
            output = method.aggregate(h, bags, own)
            if self.options.score == "instance" and output.instance_logits is not None:
                return Lesson(embedding=output.embedding, scores=output.instance_logits.amax(dim=1, keepdim=True))
            if self.options.score == "attention":
                attention = output.attention
                if attention is None and output.attention_logits is not None:
                    attention = segment_softmax(output.attention_logits, bags.cu_seqlens)
                if attention is not None:
                    return Lesson(embedding=output.embedding, scores=attention)
        raise ConfigError(
            f"method.score: {self.options.score!r} asks for what method {self.options.base['name']!r} does not have; choose"
            " another score or another base"
        )

    def after_step(self, step: StepContext) -> None:
        """The queries of the recycle network move toward their last answers, then the teacher toward the student."""
        recycle = self.options.recycle
        if self._recycled and recycle is not None and self.student.recycle is not None and not self.official:
            self.student.recycle.remember(torch.stack(self._recycled).mean(dim=0), recycle.momentum)
        self._recycled = []
        rises = self.options.momentum_schedule == "cosine"
        follow(
            self.teacher,
            self.student,
            rising(self.options.momentum, step.progress) if rises else self.options.momentum,
        )

    def _kept(self, scores: Float[Tensor, "T H"], bags: BagBatch, step: StepContext) -> Int64[Tensor, " K"]:
        """Rows of the pack that the mask leaves, bag by bag."""
        kept, begin = [], 0
        for part in split_bags(scores, bags.cu_seqlens):
            masked = self.options.mask.choose(part, step, official=self.official)
            rows = _set_order(masked) if self.official else (~masked).nonzero()[:, 0]
            kept.append(begin + rows)
            begin += len(part)
        return torch.cat(kept)

    def _student_terms(self, bags: BagBatch, kept: Int64[Tensor, " K"], step: StepContext) -> LossTerms:
        network = self.student
        if len(kept) == 0:  # with compat official alone
            h = network.method.embed_instances(bags, step)
            output = network.method.of_nothing(h[:0], step)
            return LossTerms(output=output, terms={"bag": step.criterion(output.logits, bags.known_targets)})
        shown = take(bags, kept)
        if self.official:
            shown = _in_order(shown)
        h = network.method.embed_instances(shown, rows_of(step, kept, total=len(bags.features)))
        if network.recycle is not None:
            h, shown = self._recycle(network.recycle, h, shown, step)
        terms = network.method.loss_terms(h, shown, step)
        return terms if terms.seen is not None else replace(terms, seen=shown)

    def _recycle(
        self, network: RecycleNetwork, h: Float[Tensor, "K L"], bags: BagBatch, step: StepContext
    ) -> tuple[Tensor, BagBatch]:
        """Some instances of each bag, and tokens for the others; of a bag of one the tokens alone go on."""
        options = self.options.recycle
        if options is None:
            raise TypeError("a recycle network has options")
        kept, tokens, begin = [], [], 0
        for part in split_bags(h, bags.cu_seqlens):
            order = step.uniform((len(part),), device=h.device).argsort()
            count = int(len(part) * options.keep)
            rows = order[:count] if self.official else order[:count].sort().values
            kept.append(begin + rows)
            tokens.append(network(part[order[count:]], step))
            begin += len(part)
            if self.official:
                network.remember(tokens[-1].detach(), options.momentum)
            self._recycled.append(tokens[-1].detach())
        return self._with_tokens(h, bags, tokens, kept)

    def _with_tokens(
        self, h: Float[Tensor, "T L"], bags: BagBatch, tokens: list[Tensor], kept: Sequence[Tensor] | None = None
    ) -> tuple[Tensor, BagBatch]:
        """Instances of each bag, all or the `kept` rows of the pack, and after them its tokens, which lie below all instances."""
        rows = kept or torch.split(torch.arange(len(h), device=h.device), list(bags.lengths))
        parts, places, begin = [], [], 0
        for number, token in enumerate(tokens):
            own = bags.xy0[begin : begin + bags.lengths[number]]
            begin += bags.lengths[number]
            x = torch.arange(len(token), device=h.device)
            below = torch.stack([x, (own[:, 1].max() + 1).expand_as(x)], dim=1)
            places += [bags.xy0[rows[number]], below]
            parts += [h[rows[number]], token]
        joined = torch.cat(parts)
        lengths = [len(own) + len(token) for own, token in zip(rows, tokens, strict=True)]
        shown = replace(
            bags,
            features=joined,
            xy0=torch.cat(places),
            cu_seqlens=cu_seqlens_of(lengths, device=h.device),
        )
        return joined, _in_order(shown) if self.official else shown

    def _standardized(self, bags: BagBatch) -> BagBatch:
        return replace(bags, features=self.standardize(bags.features))


def _resolved(base: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
    """The base with all its hyperparameters. Raises ConfigError for one that is unknown, or mhim itself."""
    name, config = _parsed(base)
    return {"name": name, **config.model_dump(mode="json")}


def _parsed(base: Mapping[str, JsonValue]) -> tuple[str, FrozenConfig]:
    options = dict(base)
    name = options.pop("name", None)
    if not isinstance(name, str) or name == "mhim":
        raise ConfigError(f"method.base.name: wanted a method other than mhim itself, got {name!r}")
    return name, parse_config(registry.config_class(name), options, source="config", prefix="method.base")


def _probe(in_dim: int) -> BagBatch:
    """A bag of two, to learn what a method gives."""
    return BagBatch(
        features=torch.zeros(2, in_dim),
        cu_seqlens=cu_seqlens_of([2]),
        xy0=torch.zeros(2, 2, dtype=torch.int64),
        slide_ids=("probe",),
    )


def _set_order(masked: Tensor) -> Int64[Tensor, " K"]:
    """Rows that are not masked in the order in which CPython gives them from a difference of sets."""
    rows = set(range(len(masked))) - set(masked.nonzero()[:, 0].tolist())
    return torch.tensor(list(rows), dtype=torch.int64, device=masked.device)


def _in_order(bags: BagBatch) -> BagBatch:
    """The bags with places that follow the order of their rows, so that a method that sorts by place keeps it."""
    rows = torch.arange(len(bags.xy0), device=bags.xy0.device)
    return replace(bags, xy0=torch.stack([rows, torch.zeros_like(rows)], dim=1))


def _first_rows(output: BagOutput, bags: BagBatch, tokens: int) -> BagOutput:
    """The output without the last `tokens` rows of each bag; what its instances weigh among them stays what it was."""
    attention = output.attention
    if attention is None and output.attention_logits is not None:
        attention = segment_softmax(output.attention_logits, bags.cu_seqlens)

    def cut(x: Tensor | None) -> Tensor | None:
        return None if x is None else join_bags([part[:-tokens] for part in split_bags(x, bags.cu_seqlens)])

    return replace(
        output,
        attention=cut(attention),
        attention_logits=None,
        instance_logits=cut(output.instance_logits),
        masked=None,
    )


def _plain(method: MILModel) -> dict[str, Tensor]:
    return {name: value for name, value in method.state_dict().items() if not name.startswith("standardize.")}


def _load(method: MILModel, state: dict[str, Tensor]) -> None:
    """Copy weights into a method whose own standardization stays the identity. Raises ModelError where they do not fit."""
    wanted = {name: tuple(value.shape) for name, value in _plain(method).items()}
    got = {name: tuple(value.shape) for name, value in state.items()}
    if wanted != got:
        different = sorted(name for name in wanted.keys() | got.keys() if wanted.get(name) != got.get(name))
        raise ModelError(
            f"a warm start needs a model of the base, {type(method).__name__} with its widths; these do not fit: {different}"
        )
    method.load_state_dict(state, strict=False)
