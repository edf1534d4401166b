"""Feature files of other tools, written by their documented layouts; one slide of 2000 × 1500 px at 0.25 µm/px, 20 tiles."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

SIZE0 = (2000, 1500)
MPP = 0.25
SIDE0 = 256


def corners(*, columns: int = 5, rows: int = 4, side: int = SIDE0) -> NDArray[np.int64]:
    """Column by column, as no store of ours keeps them."""
    return np.array([[x * side, y * side] for x in range(columns) for y in range(rows)], dtype=np.int64)


@dataclass
class Peers:
    """Writes slides in each layout below `root`; what was written is in `features` and `xy0`, by slide id."""

    root: Path
    dim: int = 6
    features: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    xy0: dict[str, NDArray[np.int64]] = field(default_factory=dict)

    def _new(self, slide_id: str, xy0: NDArray[np.int64] | None, label: int = 0) -> None:
        self.xy0[slide_id] = corners() if xy0 is None else xy0
        rng = np.random.default_rng(list(slide_id.encode()))
        made = rng.normal(size=(len(self.xy0[slide_id]), self.dim)) + label
        self.features[slide_id] = made.astype(np.float16).astype(np.float32)  # numbers that both types hold

    def clam(
        self, slide_id: str, xy0: NDArray[np.int64] | None = None, *, patches: bool = True, label: int = 0
    ) -> Path:
        self._new(slide_id, xy0, label)
        folder = self.root / "clam" / "FEATS"
        for name in ("h5_files", "pt_files"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        features, coords = self.features[slide_id], self.xy0[slide_id]
        with h5py.File(folder / "h5_files" / f"{slide_id}.h5", "w") as file:
            file.create_dataset("features", data=features, chunks=(32, self.dim), maxshape=(None, self.dim))
            file.create_dataset("coords", data=coords.astype(np.int32), chunks=(32, 2), maxshape=(None, 2))
        torch.save(torch.from_numpy(features.copy()), folder / "pt_files" / f"{slide_id}.pt")
        if patches:
            self.clam_patches(slide_id)
        return folder

    def clam_patches(self, slide_id: str, *, size: int = 64, level: int = 1, downsample: float = 4.0) -> Path:
        folder = self.root / "clam" / "RESULTS" / "patches"
        folder.mkdir(parents=True, exist_ok=True)
        with h5py.File(folder / f"{slide_id}.h5", "w") as file:
            coords = file.create_dataset("coords", data=self.xy0[slide_id], chunks=(1, 2), maxshape=(None, 2))
            coords.attrs.update(
                patch_size=size,
                patch_level=level,
                downsample=np.array([downsample, downsample]),
                downsampled_level_dim=np.array([500, 375]),
                level_dim=np.array(SIZE0),
                name=slide_id,
                save_path="/somewhere",
            )
        return folder

    def trident(
        self,
        slide_id: str,
        xy0: NDArray[np.int64] | None = None,
        *,
        size0: float = SIDE0,
        encoder: str = "uni_v1",
        magnification: float = 20.0,
        label: int = 0,
    ) -> Path:
        self._new(slide_id, xy0, label)
        folder = self.root / "trident" / "20x_128px_0px_overlap" / f"features_{encoder}"
        folder.mkdir(parents=True, exist_ok=True)
        features, coords = self.features[slide_id], self.xy0[slide_id]
        with h5py.File(folder / f"{slide_id}.h5", "w") as file:
            stored = file.create_dataset("features", data=features, chunks=(1, self.dim), maxshape=(None, self.dim))
            stored.attrs.update(encoder=encoder, name=slide_id, savetodir="/somewhere")
            places = file.create_dataset("coords", data=coords, chunks=(1, 2), maxshape=(None, 2))
            places.attrs.update(
                patch_size=128,
                patch_size_level0=size0,
                level0_magnification=40,
                target_magnification=magnification,
                overlap=0,
                name=slide_id,
                savetodir="/somewhere",
                level0_width=SIZE0[0],
                level0_height=SIZE0[1],
            )
        return folder

    def stamp(
        self,
        slide_id: str,
        xy0: NDArray[np.int64] | None = None,
        *,
        attributes: dict[str, object] | None = None,
        um: float = MPP,
        below: str = "",
        label: int = 0,
    ) -> Path:
        self._new(slide_id, xy0, label)
        folder = self.root / "stamp" / "uni-0123abcd"
        (folder / below).mkdir(parents=True, exist_ok=True)
        with h5py.File(folder / below / f"{slide_id}.h5", "w") as file:
            file["feats"] = self.features[slide_id].astype(np.float16)
            file["coords"] = (self.xy0[slide_id] * um).astype(np.float32)
            modern = {
                "stamp_version": "2.5.0", "extractor": "uni", "unit": "um", "tile_size_um": SIDE0 * MPP,
                "tile_size_px": 224, "code_hash": "0123abcd", "feat_type": "tile",
            }  # fmt: skip
            file.attrs.update(modern if attributes is None else attributes)
        return folder

    def atlaspatch(
        self,
        slide_id: str,
        xy0: NDArray[np.int64] | None = None,
        *,
        encoders: tuple[str, ...] = ("uni_v2",),
        label: int = 0,
    ) -> Path:
        self._new(slide_id, xy0, label)
        folder = self.root / "atlas" / "patches"
        folder.mkdir(parents=True, exist_ok=True)
        coords = self.xy0[slide_id]
        with h5py.File(folder / f"{slide_id}.h5", "w") as file:
            read = np.tile(np.array([64, 64, 1]), (len(coords), 1))
            file["coords"] = np.concatenate([coords, read], axis=1).astype(np.int32)
            file["passports"] = np.full(len(coords), b"x", "S160")
            for number, encoder in enumerate(encoders):
                file[f"features/{encoder}"] = self.features[slide_id] * (number + 1)
            file["features/__tmp_cut"] = np.zeros((1, self.dim), np.float32)
            file.attrs.update(
                patch_size=128, patch_size_level0=SIDE0, level0_magnification=40, target_magnification=20, overlap=0,
                level0_width=SIZE0[0], level0_height=SIZE0[1], num_patches=len(coords),
            )  # fmt: skip
        return folder.parent

    def slide2vec(
        self,
        slide_id: str,
        xy0: NDArray[np.int64] | None = None,
        *,
        form: str = "pt",
        tiles: bool = True,
        label: int = 0,
    ) -> Path:
        self._new(slide_id, xy0, label)
        folder = self.root / "slide2vec"
        for name in ("tile_embeddings", "tiles"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        features, coords = self.features[slide_id], self.xy0[slide_id]
        where = folder / "tile_embeddings"
        if form == "pt":
            torch.save(torch.from_numpy(features).half(), where / f"{slide_id}.pt")
        else:  # rows in another order than the coordinates, which tile_index says
            index = np.arange(len(features))[::-1].copy()
            np.savez_compressed(where / f"{slide_id}.npz", features=features[index], tile_index=index)
        meta = {
            "sample_id": slide_id, "artifact_type": "tile_embeddings", "format": form, "feature_dim": self.dim,
            "num_tiles": len(features), "encoder_name": "uni2", "coordinates_npz_path": "/gone/x.npz",
            "coordinates_meta_path": "/gone/x.meta.json", "tile_size_lv0": SIDE0, "requested_tile_size_px": 128,
            "requested_spacing_um": 0.51, "encoder_input_size_px": 224,
        }  # fmt: skip
        (where / f"{slide_id}.meta.json").write_text(json.dumps(meta))
        if tiles:
            np.savez_compressed(
                folder / "tiles" / f"{slide_id}.coordinates.npz",
                tile_index=np.arange(len(coords), dtype=np.int32), x=coords[:, 0], y=coords[:, 1],
                tissue_fractions=np.linspace(0.1, 1, len(coords), dtype=np.float32),
            )  # fmt: skip
            about = {
                "slide": {"dimensions": list(SIZE0), "base_spacing_um": MPP, "level_downsamples": [1.0, 4.0]},
                "tiling": {"requested_tile_size_px": 128, "requested_spacing_um": 0.51, "tile_size_lv0": SIDE0,
                           "step_px_lv0": SIDE0, "overlap": 0.0},
                "artifact": {"coordinate_space": "level0_px", "tile_order": "x_then_y"},
            }  # fmt: skip
            (folder / "tiles" / f"{slide_id}.coordinates.meta.json").write_text(json.dumps(about))
        return folder


@pytest.fixture
def peers(tmp_path: Path) -> Peers:
    """Writers of other tools' layouts, below a folder of this test."""
    return Peers(root=tmp_path / "peers")
