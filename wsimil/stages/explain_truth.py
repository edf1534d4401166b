"""What explain-check is told of pixels: a folder of outlines, and the output that they speak of."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import shapely
from numpy.typing import NDArray

from wsimil.bags import FeatureBag
from wsimil.errors import ConfigError, SlideError
from wsimil.evaluation.truth import connected, find_truth, grown, read_truth, spelled, tile_truth
from wsimil.stages.explain_runs import CheckedRun

LEAST_SHARE = 0.5
"""The share of a tile's area that must be inside for the tile to be positive."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TruthFolder:
    """`output` is the model's, number `index`; `name` is what the files call it. Lesions are grown by `margin_um`."""

    folder: Path
    output: str
    index: int
    name: str
    margin_um: float = 0.0

    @classmethod
    def open(
        cls,
        folder: Path,
        runs: Sequence[CheckedRun],
        slides: Sequence[str],
        *,
        output: str | None,
        margin_um: float = 0.0,
    ) -> TruthFolder:
        """Raises ConfigError where no file is of these slides, or where the output cannot be told."""
        outputs = runs[0].trained.task.outputs
        paths = [path for slide in slides if (path := find_truth(folder, slide)) is not None]
        if not paths:
            raise ConfigError(
                f"--truth {folder} holds no file for any of the {len(slides)} slides; wanted <slide_id>.geojson or .npz"
            )
        names: set[str] = set()
        for path in paths:
            with suppress(SlideError):  # told when the slide's turn comes
                names |= {name for name in read_truth(path).names if name}
        if output is not None:
            own, _, name = output.partition("=")
            if own not in outputs:
                raise ConfigError(f"--truth-output {own!r}: the model gives {', '.join(outputs)}")
        else:
            same = [one for one in outputs if spelled(one) in {spelled(name) for name in names}]
            if len(same) != 1:
                raise ConfigError(
                    f"which output the truth speaks of cannot be told: its files name {', '.join(sorted(names)) or 'nothing'},"
                    f" the model gives {', '.join(outputs)}; say it with --truth-output OUTPUT, or OUTPUT=NAME"
                )
            own, name = same[0], ""
        wanted = name or own
        if names and spelled(wanted) not in {spelled(one) for one in names}:
            raise ConfigError(
                f"the truth files name {', '.join(sorted(names))}, none of it {wanted!r}; say --truth-output {own}=NAME"
            )
        return cls(folder=folder, output=own, index=outputs.index(own), name=wanted, margin_um=margin_um)

    def path(self, slide_id: str) -> Path | None:
        """The file of a slide, None where nothing is known of it."""
        return find_truth(self.folder, slide_id)

    def of(self, path: Path, bag: FeatureBag) -> tuple[NDArray[np.bool_], shapely.MultiPolygon]:
        """Which tiles are at least half inside of what was drawn, bool [N], and the lesions, grown.

        Raises SlideError for a file that cannot be read, or that counts from where nobody knows.
        """
        grid = bag.grid
        begin = grid.slide.bounds0_px[:2] if bag.bounds_known else None
        lesions = connected(read_truth(path, bounds0_xy=begin).of(self.name))
        return tile_truth(grid, lesions) >= LEAST_SHARE, grown(lesions, self.margin_um / grid.slide.mpp)
