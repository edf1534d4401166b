"""MODEL_CARD.md: what TRIPOD+AI and MINIMAR ask for, filled in where the run knows it, and marked TODO where its author must."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from wsimil.export.report.cells import Cells, brief, p_text, shown
from wsimil.export.report.names import headlines, of_labels, title_of
from wsimil.export.report.report import ComparisonReport, ModelCard, Report
from wsimil.provenance import Json

TODO = "**TODO**"
_SPECIAL = frozenset("\\`*_{}[]<>#|!~&$")


def inert(name: str, most: int = 80) -> str:
    """A name as Markdown shows it, letter by letter: nothing in it is markup, a link or HTML, and it stays on its line."""
    plain = " ".join("".join(c if c.isprintable() else " " for c in name).split())
    plain = plain if len(plain) <= most else plain[: most // 2] + "…" + plain[-(most // 2) :]
    marked = "".join("\\" + c if c in _SPECIAL else c for c in plain)
    # What readers take for a link or a person without any mark.
    return marked.replace("://", "&#58;//").replace("www.", "www&#46;").replace("@", "&#64;")


def model_card(report: Report, tree: Mapping[str, Json]) -> str:
    """The card of the model, or of all runs whose answers were pooled, with the numbers of `tree`, which is metrics.json."""
    return "\n".join(_Card(report, tree).lines()) + "\n"


def comparison_card(report: ComparisonReport, tree: Mapping[str, Json]) -> str:
    """What is known of two compared models, or of the runs of two studies; the card of each is what `wsimil evaluate` writes."""
    cells = Cells(tree=tree)

    def number(*path: str | int) -> str:
        return shown(cells.get(path))

    def interval(name: str) -> str:
        low, high = (cells.get(("differences", name, end)) for end in ("low", "high"))
        return "–" if low is None or high is None else f"{shown(low)} to {shown(high)}"

    task = report.comparison.task
    names = headlines(task.kind, report.comparison.differences)
    people = f"{number('counted', 'rows')} {report.unit}s of {number('counted', 'patients')} patients"
    compared = f"Two models on {people} that both answered and neither saw"
    if len(report.models) > len(report.names):
        compared = f"The runs of two studies on {people}, each answered once in both, by a run that did not see it"
    lines = [
        f"# Model card: {inert(report.names[0])} and {inert(report.names[1])}",
        "",
        "**For research use only.** Not a medical device; its output must not be used for diagnosis or treatment.",
        "",
        f"{compared}, cohort {inert(report.cohort)}. `wsimil evaluate` writes the whole card of each. Differences are first less"
        " second.",
        "",
        "| Metric | First | Second | Difference | 95 % interval over patients | p |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for name in names:
        values = [number("differences", name, field) for field in ("first", "second", "difference")]
        p_value = p_text(report.comparison.differences[name].p_value)
        title = inert(title_of(name, positive=task.positive))
        lines.append(f"| {title} | {' | '.join(values)} | {interval(name)} | {p_value.replace('<', '&lt;')} |")
    lines += ["", "| | method | weights | config | threshold |", "|---|---|---|---|---|"]
    lines += [
        f"| {inert(one.name)} | {inert(one.method)} | `{one.digest}` | `{one.config_digest}` |"
        f" {inert(one.threshold_origin, 300)} |"
        for one in report.models
    ]
    questions = ("Why these two were compared", "Whether the comparison was planned", "Author, contact, license")
    lines += [
        "",
        *(f"- {question}: {TODO}" for question in questions),
        *(f"- {inert(note, 600)}" for note in report.notes),
    ]
    return "\n".join(lines) + "\n"


class _Card:
    def __init__(self, report: Report, tree: Mapping[str, Json]) -> None:
        self._report, self._cells = report, Cells(tree=tree)
        self._found, self._models = report.judgement, report.models

    def lines(self) -> list[str]:
        """The card, section by section."""
        return [
            f"# Model card: {self._name()}",
            "",
            "**For research use only.** Not a medical device; its output must not be used for diagnosis or treatment.",
            "",
            f"Filled in by `wsimil evaluate` {self._report.version} from what the run knows. What it cannot know is marked"
            f" {TODO}: write it, or say that it is not known. Numbers are those of `metrics.json` beside this file.",
            "",
            *self._summary(),
            *self._performance(),
            *self._data(),
            *self._minimar(),
            *self._tripod(),
            *self._how(),
        ]

    def _summary(self) -> list[str]:
        task = self._found.task
        rows = [
            ("What it answers", f"{task.kind} of {self._report.unit}s: {_names(self._groups())}"),
            ("Method", self._each(_method)),
            ("Encoder", self._each(_encoder)),
            ("Tiles", self._each(_tiles)),
            ("Weights", self._each(_weights)),
            ("Config", self._each(_config)),
            ("Kind of features", self._each(_features)),
            ("Threshold", self._each(_threshold)),
            (
                "Software",
                f"wsimil {self._each(lambda model: model.version)} (training), wsimil {self._report.version} (evaluation)",
            ),
            ("Intended use", "research on the task above, on slides like those that it was trained on"),
            (
                "Out of scope",
                "diagnosis, treatment, triage; slides of other stains, organs or scanners than it was judged on",
            ),
            ("Author, contact, license", TODO),
        ]
        return ["## Summary", "", "| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows), ""]

    def _title(self, metric: str) -> str:
        return inert(title_of(metric, positive=self._found.task.positive))

    def _performance(self) -> list[str]:
        names = headlines(self._found.task.kind, self._found.estimates)
        rows = [
            f"| {self._title(name)} | {self._number('metrics', name, 'value')} | {self._interval(name)} |"
            for name in names
        ]
        lines = [
            "## Performance",
            "",
            f"On {self._people()}{self._held_out()}, cohort"
            f" {inert(self._report.cohort)}{f', split {inert(self._report.split)}' if self._report.split else ''}."
            f"{' Numbers pool the runs, each of which decides for itself.' if self._several else ''}",
            "",
            "| Metric | Value | 95 % interval over patients |",
            "|---|---:|---:|",
            *rows,
            "",
        ]
        titles = " | ".join(self._title(name) for name in names[:2])
        for grouping in self._found.groupings:
            lines += [
                f"By {inert(grouping.column)}:",
                "",
                f"| {inert(grouping.column)} | {self._report.unit}s | patients | {titles} |",
                "|---|---:|---:|" + "---:|" * len(names[:2]),
            ]
            for i, row in enumerate(grouping.groups):
                path = ("groups", grouping.column, i)
                if row.too_few:
                    labels = of_labels(self._found.task.kind, row.estimates)
                    known = [f"{self._title(n)}: {self._estimate(*path, 'estimates', n)}" for n in labels]
                    cells = ["; ".join([inert(row.too_few), *known])] + [""] * (len(names[:2]) - 1)
                else:
                    cells = [self._estimate(*path, "estimates", n) for n in names[:2]]
                counts = f"{self._number(*path, 'rows')} | {self._number(*path, 'patients')}"
                lines.append(f"| {inert(row.group) or 'not known'} | {counts} | {' | '.join(cells)} |")
            lines.append("")
        return lines

    def _data(self) -> list[str]:
        lines = ["## Data", "", f"| | {self._report.unit}s | patients |", "|---|---:|---:|"]
        for model in self._models:
            name = f" {inert(model.name)}" if self._several else ""
            for split, counts in model.cohort.items():
                lines.append(f"| training run{name}, {inert(split)} | {counts['rows']} | {counts['patients']} |")
        for i, step in enumerate(self._report.flow):
            lines.append(
                f"| evaluated: {inert(step.what)} | {self._number('flow', i, 'units')} | {self._number('flow', i, 'patients')} |"
            )
            lines += [
                f"| &nbsp; left out before: {inert(lost.reason)} | {self._number('flow', i, 'lost', k, 'units')} |"
                f" {self._number('flow', i, 'lost', k, 'patients')} |"
                for k, lost in enumerate(step.lost)
            ]
        notes = [f"- {inert(note, 600)}" for note in self._report.notes]
        return [*lines, "", *notes, *([""] if notes else [])]

    def _minimar(self) -> list[str]:
        sites = next((g for g in self._found.groupings if g.column == "site"), None)
        rows = {
            "Population: where the data come from": _names([row.group for row in sites.groups]) if sites else TODO,
            "Population: setting (hospital, referral, screening)": TODO,
            "Population: how cases were selected, and when": f"{TODO}; who was left out after that stands under Data",
            "Demographics: age": self._grouped("age"),
            "Demographics: sex": self._grouped("sex"),
            "Demographics: race, ethnicity, socioeconomic status": TODO,
            "Architecture: output": f"{self._found.task.kind}: {_names(self._groups())}",
            "Architecture: intended user": f"researchers; {TODO}",
            "Architecture: how data were split": f"by patient: {self._splits()}",
            "Architecture: how the reference standard was obtained": TODO,
            "Architecture: class of model": f"multiple-instance learning, {self._each(_method)}, on frozen tile features",
            "Architecture: features": self._each(_encoder),
            "Architecture: missing data": "slides without a label, tissue or features are left out, and counted under Data",
            "Evaluation: how the model was chosen": f"by the validation split; {self._each(_kept)}",
            "Evaluation: internal": self._people(),
            "Evaluation: external": f"{TODO}: say whether the slides judged here come from other places than those trained on",
            "Evaluation: transparency (code and data)": f"code: wsimil {self._report.version}; data: {TODO}",
        }
        return _table("MINIMAR", "Hernandez-Boussard et al. 2020, JAMIA 27:2011", rows)

    def _tripod(self) -> list[str]:
        see = "see"
        rows = {
            "1 Title": f"{TODO}: names the study as development or evaluation of a prediction model, its population and outcome",
            "2 Abstract": f"{TODO} (TRIPOD+AI for abstracts)",
            "3 Background": f"{TODO}: healthcare context, rationale, known health inequalities",
            "4 Objectives": f"{TODO}: development, evaluation, or both",
            "5 Data": f"cohort {inert(self._report.cohort)}; sources, dates and representativeness: {TODO}",
            "6 Participants": f"{self._people()}; eligibility, setting and treatments: {TODO}",
            "7 Data preparation": f"tiles and encoder as in Summary; features {self._each(_features)}",
            "8 Outcome": f"column {_names(self._found.task.columns)} of the cohort file; how and by whom it was assessed: {TODO}",
            "9 Predictors": "the slides themselves, as features of tiles; no clinical variables",
            "10 Sample size": f"{self._people()}, {self._counted()}; how it was arrived at: {TODO}",
            "11 Missing data": "left out, and counted under Data",
            "12 Analytical methods": f"{self._each(_method)}; config {self._each(_config)}; splits by"
            f" patient; intervals by bootstrap over patients ({self._number('intervals', 'replicates')} replicates, BCa);"
            " calibration, decision curves and groups in report.html",
            "13 Class imbalance": f"training setting: {self._each(_balance)}",
            "14 Fairness": f"groups judged: {_names([g.column for g in self._found.groupings]) or 'none'}; rationale: {TODO}",
            "15 Model output": f"{_names([c.name for c in self._found.task.answers])}; threshold: {self._each(_threshold)}",
            "16 Training versus evaluation": f"{TODO}: differences in setting, eligibility, outcome, predictors",
            "17 Ethical approval": TODO,
            "18 Open science (18a funding, 18b conflicts, 18c protocol, 18d registration, 18e data, 18f code)": f"{TODO}; code:"
            f" wsimil {self._report.version}",
            "19 Patient and public involvement": TODO,
            "20 Participants (flow, characteristics)": f"flow: {see} Data; characteristics: {TODO}",
            "21 Model development (numbers in each analysis)": self._splits(),
            "22 Model specification": f"weights {self._each(_weights)}, model.json beside them",
            "23 Model performance (23a with intervals and in groups, 23b heterogeneity)": f"{see} Performance, and report.html",
            "24 Model updating": "none",
            "25 Interpretation": f"{TODO}: main results, fairness, in the light of earlier studies",
            "26 Limitations": f"{TODO}; {_limits(self._report)}",
            "27 Usability of the model (27a poor input, 27b users and expertise, 27c next steps)": "slides without tissue get no"
            f" answer, features of another kind are refused; {TODO}",
        }
        return _table(
            "TRIPOD+AI", "Collins et al. 2024, BMJ 385:e078378; item numbers are those of its checklist", rows
        )

    def _how(self) -> list[str]:
        return [
            "## How to repeat this",
            "",
            "`wsimil evaluate` on the same predictions and cohort file writes the same numbers: draws are fixed by seed"
            f" {self._number('intervals', 'seed')}. The weights above are checked against model.json whenever they are loaded.",
        ]

    def _groups(self) -> Sequence[str]:
        return self._found.task.group_names

    def _people(self) -> str:
        unit = self._report.unit
        told = f"{self._number('counted', unit + 's')} {unit}s"
        return told if unit == "patient" else f"{told} of {self._number('counted', 'patients')} patients"

    @property
    def _several(self) -> bool:
        return len(self._models) > 1

    def _name(self) -> str:
        if self._several:
            return f"{inert(self._report.title)}, {len(self._models)} runs"
        return inert(self._models[0].name)

    def _of(self, model: ModelCard) -> str:
        return f"{inert(model.name)}: " if self._several else ""

    def _each(self, told: Callable[[ModelCard], str]) -> str:
        """What is told of the model, or alike of all runs; else that of each run by its name."""
        said = [told(model) for model in self._models]
        if len(set(said)) == 1:
            return said[0]
        return "; ".join(f"{self._of(model)}{one}" for model, one in zip(self._models, said, strict=True))

    def _held_out(self) -> str:
        known = all(model.learned_known for model in self._models)
        if not known:
            return f"; whether {'a run' if self._several else 'the model'} learned from some of them **is not known**"
        if self._several:
            return f", each judged by runs that neither learned from nor were chosen on that {self._report.unit}"
        return " that the model neither learned from nor was chosen on"

    def _counted(self) -> str:
        names = self._found.counts
        return ", ".join(f"{self._number('counted', 'of', name)} {inert(name)}" for name in names) or "a number each"

    def _splits(self) -> str:
        """Those of each run, alike or not: they are of other patients."""
        told = []
        for model in self._models:
            own = [
                f"{inert(split)} {counts['rows']} {self._report.unit}s of {counts['patients']} patients"
                for split, counts in model.cohort.items()
            ]
            told.append(self._of(model) + (", ".join(own) or f"not known to the run; {TODO}"))
        return "; ".join(told)

    def _grouped(self, column: str) -> str:
        found = next((g for g in self._found.groupings if g.column == column), None)
        return (
            TODO
            if found is None
            else ", ".join(f"{inert(r.group) or 'not known'}: {r.patients} patients" for r in found.groups)
        )

    def _number(self, *path: str | int) -> str:
        return shown(self._cells.get(path))

    def _interval(self, name: str) -> str:
        return self._interval_at("metrics", name)

    def _estimate(self, *path: str | int) -> str:
        return f"{self._number(*path, 'value')} ({self._interval_at(*path)})"

    def _interval_at(self, *path: str | int) -> str:
        low, high = self._cells.get([*path, "low"]), self._cells.get([*path, "high"])
        return "–" if low is None or high is None else f"{shown(low)} to {shown(high)}"


def _method(model: ModelCard) -> str:
    return inert(model.method)


def _encoder(model: ModelCard) -> str:
    return inert(str(model.encoder.get("name", ""))) or TODO


def _tiles(model: ModelCard) -> str:
    return ", ".join(f"{inert(k)} {inert(brief(v))}" for k, v in model.tiling.items()) or TODO


def _weights(model: ModelCard) -> str:
    return f"`{model.digest}`"


def _config(model: ModelCard) -> str:
    return f"`{model.config_digest}`"


def _features(model: ModelCard) -> str:
    return f"`{model.features_digest}`" if model.features_digest else TODO


def _threshold(model: ModelCard) -> str:
    values = ", ".join(shown(value) for value in model.thresholds)
    return f"{values}{'; ' if values else ''}{inert(model.threshold_origin, 300)}"


def _kept(model: ModelCard) -> str:
    epoch = model.training.get("kept_epoch")
    return f"weights of epoch {inert(str(epoch))}" if epoch is not None else "not recorded"


def _balance(model: ModelCard) -> str:
    """How training balanced classes, wherever in the recipe it stands."""
    recipe = model.training.get("recipe")
    if not isinstance(recipe, Mapping):
        return "not recorded"
    parts = [recipe, *(part for part in recipe.values() if isinstance(part, Mapping))]
    return inert(str(next((part["balance"] for part in parts if "balance" in part), None) or "not recorded"))


def _table(name: str, source: str, rows: Mapping[str, str]) -> list[str]:
    return [
        f"## {name}", "", f"({source}.)", "", "| Item | |", "|---|---|",
        *(f"| {item} | {said} |" for item, said in rows.items()), "",
    ]  # fmt: skip


def _names(names: Sequence[str], most: int = 12) -> str:
    return ", ".join(inert(name) or "not known" for name in names[:most]) + (", …" if len(names) > most else "")


def _limits(report: Report) -> str:
    flagged = sum(row.too_few is not None for grouping in report.judgement.groupings for row in grouping.groups)
    return f"{flagged} groups have too few patients to be judged in full" if flagged else "see the intervals"
