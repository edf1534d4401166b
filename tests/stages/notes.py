"""A reporter that keeps what is said of a whole run."""

from __future__ import annotations

from wsimil.stages.progress import Quiet


class Notes(Quiet):
    """`said`: every note, in order."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def note(self, text: str) -> None:
        self.said.append(text)
