"""The runs of a study, rounds × seeds × configs, as a list; nothing is trained here, and torch is not needed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from wsimil.errors import ConfigError
from wsimil.files import write_text
from wsimil.mil.facts import FACTS, read_facts
from wsimil.provenance import Json, sha256_json
from wsimil.splits import read_plan
from wsimil.stages.train_config import TrainConfig

STUDY = "study.json"
"""What says that a folder is a study: the commands of its runs."""
DONE = "done.json"
"""In the folder of a run, for as long as it is as the study made it; whoever trains there again removes it first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkItem:
    """One run of a study: `name` is "<config>/<round>/seed-<n>", and its folder below that of the study.

    `contents` is a digest of what the features hold; empty where nobody has looked, or whoever trains it watches over them.
    """

    name: str
    config: TrainConfig
    features: Path
    cohort: Path
    out: Path
    contents: str = ""

    @property
    def config_name(self) -> str:
        """Which config it is a run of."""
        return self.name.partition("/")[0]

    @property
    def run_name(self) -> str:
        """The round and seed, "<round>/seed-<n>", which runs of several configs have in common."""
        return self.name.partition("/")[2]

    @property
    def config_file(self) -> Path:
        """Where the config of the run is written before it starts."""
        return self.out.with_name(f"{self.out.name}.yaml")

    def command(self) -> list[str]:
        """The same run as a command line, for whoever starts it elsewhere."""
        paths = (str(self.features), "--cohort", str(self.cohort), "-o", str(self.out), "-c", str(self.config_file))
        return ["wsimil", "train", *paths]

    def made_of(self) -> dict[str, str]:
        """What a finished run must have been made of to be left as it is, beside what the features hold.

        Raises ModelError where the model that it begins with is not there.
        """
        cohort = sha256(self.cohort.read_bytes()).hexdigest()
        made: dict[str, Json] = {"config": self.config.model_dump(mode="json"), "cohort": cohort}
        if self.config.fit.warm_start is not None:
            made["warm_start"] = read_facts(self.config.fit.warm_start)["weights_digest"]
        digest = sha256_json(made)
        return {"digest": digest, "features": str(self.features.resolve())}

    def mark_done(self, made: Mapping[str, str], *, contents: str) -> None:
        """Leave it as it is from now on; `made` is what it was made of before it began, and `contents` a digest of what its
        features held. Raises OutputError."""
        said = {**made, "contents": contents, "model": _model_digest(self.out)}
        write_text(self.out / DONE, json.dumps(said) + "\n")

    def is_done(self) -> bool:
        """Whether its folder holds this very run, finished; features may have moved where what they hold is known."""
        wanted = self.made_of()
        try:
            said = json.loads((self.out / DONE).read_text(encoding="utf-8"))
            model = _model_digest(self.out)
        except (OSError, ValueError):
            return False
        if self.contents:
            del wanted["features"]
            wanted["contents"] = self.contents
        if not isinstance(said, dict):
            return False
        # Earlier versions did not say which model it was.
        return said.get("model", model) == model and all(said.get(name) == value for name, value in wanted.items())


def work_items(
    configs: Mapping[str, TrainConfig],
    features: Path,
    cohort: Path,
    out: Path,
    *,
    splits: Path,
    rounds: Sequence[str] = (),
    seeds: Sequence[int] = (0,),
) -> list[WorkItem]:
    """The runs of a study, rounds that have a test split unless `rounds` names some; configs of a round and seed side by side.

    Raises ConfigError for names that make no folder, a config with splits of its own, CohortError for broken splits.
    """
    plan_of = read_plan(splits)
    chosen = [plan_of.round(name).name for name in rounds] or [one.name for one in plan_of.rounds if one.test]
    if not chosen:
        raise ConfigError(f"{splits}: no round has a test split; name rounds with --round")
    items = []
    for name, config in configs.items():
        if config.split.model_fields_set:
            raise ConfigError(f"config {name}: holds a split section; a study takes its splits from {splits} alone")
    for one in chosen:
        for seed in dict.fromkeys(seeds):
            for name, config in configs.items():
                split = config.split.model_copy(
                    update={"file": splits.resolve(), "round": one, "digest": plan_of.digest}
                )
                fit = config.fit.model_copy(update={"seed": seed})
                items.append(
                    WorkItem(
                        name=f"{name}/{one}/seed-{seed}",
                        config=config.model_copy(update={"split": split, "fit": fit}),
                        features=features,
                        cohort=cohort,
                        out=out / name / one / f"seed-{seed}",
                    )
                )
    return items


def study_text(items: Sequence[WorkItem], out: Path) -> str:
    """What STUDY in `out` says: each run with its folder and command."""
    study = [{"name": item.name, "out": str(item.out.relative_to(out)), "command": item.command()} for item in items]
    return json.dumps(study, indent=1) + "\n"


def _model_digest(run: Path) -> str:
    """Of what names the weights in a run's folder, which may have been lost or replaced by hand."""
    return sha256((run / FACTS).read_bytes()).hexdigest()
