"""Features whose tiles are placed in level-0 px, row-major and unique: the step between any layout and any other."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import wsimil
from wsimil.bags import FeatureBag
from wsimil.errors import StoreError
from wsimil.geometry import MppSource, SlideInfo, TileGrid, TileSpec, round_half_up
from wsimil.provenance import Json, Provenance
from wsimil.store.interop.peer import Features, PeerBag, PeerHeader

MAX_MPP_DISAGREEMENT = 0.01

_OWN_LEVELS = {"dicom", "ome-tiff"}
"""Vendors whose levels may be others than OpenSlide counts."""
_GIVE_MPP = "give --mpp, or --slides with the folder of the slides or a manifest with a column mpp"


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownSlide:
    """What is known of a slide from elsewhere than its feature file: the open slide's facts, or µm per level-0 px alone."""

    info: SlideInfo | None = None
    mpp: float | None = None
    mpp_detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacedTiles:
    """One slide's features and its tiles in level-0 px, `xy0` int64 [N, 2], row-major (y, then x) and unique.

    `size0` is the side of a tile in level-0 px, None is what nobody states.
    `linkable`: an HDF5 file whose dataset /features has these rows in this order.
    """

    slide_id: str
    features: Features
    xy0: NDArray[np.int64]
    size0: float
    size_px: int | None
    stride_px: int | None
    mpp: float | None
    mpp_source: MppSource
    mpp_detail: str
    slide_size0_px: tuple[int, int] | None
    bounds0_px: tuple[int, int, int, int] | None
    level_downsamples: tuple[float, ...]
    read_level: int
    read_px: int
    tissue: NDArray[np.float32] | None
    encoder: str | None
    info: SlideInfo | None
    provenance: Provenance
    linkable: Path | None = None

    @property
    def known_mpp(self) -> float:
        """µm per level-0 px. Raises StoreError where nobody states it."""
        if self.mpp is None:
            raise StoreError(f"slide {self.slide_id!r}: its features do not state µm per pixel; {_GIVE_MPP}")
        return self.mpp

    @property
    def known_slide_size0_px(self) -> tuple[int, int]:
        """Width and height of the slide. Raises StoreError where nobody states them."""
        if self.slide_size0_px is None:
            raise StoreError(
                f"slide {self.slide_id!r}: its features do not state how large the slide is; give --slides with the folder of the"
                " slides"
            )
        return self.slide_size0_px

    @property
    def extent0_px(self) -> tuple[int, int]:
        """The slide's width and height, or, where nobody states them, how far its tiles reach."""
        right, bottom = (math.ceil(side) for side in self.xy0.max(axis=0, initial=0) + self.size0)
        return self.slide_size0_px or (right, bottom)

    @property
    def known_size_px(self) -> int:
        """Side of a tile in px as the encoder got it. Raises StoreError where nobody states it."""
        if self.size_px is None:
            raise StoreError(
                f"slide {self.slide_id!r}: its features do not state how many px wide a tile was read; extract it again"
            )
        return self.size_px

    @property
    def known_encoder(self) -> str:
        """The name of the encoder. Raises StoreError where nobody states it."""
        if self.encoder is None:
            raise StoreError(
                f"slide {self.slide_id!r}: its features do not state their encoder; name it with --encoder"
            )
        return self.encoder

    def to_bag(self, *, source: Mapping[str, Json] | None = None) -> FeatureBag:
        """A bag of ours; `source` goes into its provenance. Raises StoreError where µm per pixel is not known.

        Shares of tissue that are not known are NaN, a slide of unknown size is as large as its tiles reach, and where its scan
        begins is then not known either, which the provenance says: `bounds_known`.
        """
        mpp, size_px = self.known_mpp, self.known_size_px
        info = self.info or SlideInfo(
            slide_id=self.slide_id,
            path=Path(),
            size0_px=self.extent0_px,
            mpp=mpp,
            mpp_source=self.mpp_source,
            mpp_detail=self.mpp_detail,
            level_downsamples=self.level_downsamples,
            bounds0_px=self.bounds0_px or (0, 0, *self.extent0_px),
            vendor="unknown",
            digest="",
        )
        grid = TileGrid(
            slide=info,
            spec=TileSpec(
                size_px=size_px,
                mpp=self.size0 * mpp / size_px,
                stride_px=self.stride_px or size_px,
                min_tissue=0.0,
            ),
            xy0=self.xy0,
            tissue=np.full(len(self.xy0), math.nan, np.float32) if self.tissue is None else self.tissue,
            read_level=self.read_level,
            read_px=self.read_px,
        )
        kind = self.provenance
        provenance = Provenance(
            encoder=kind.encoder,
            tiling=kind.tiling,
            pixels={**kind.pixels, **(source or {})},
            slide={
                "mpp": mpp,
                "mpp_source": self.mpp_source,
                "mpp_detail": self.mpp_detail,
                "tile_um": self.size0 * mpp,
                "slide_was_read": self.info is not None,
                "size_known": self.slide_size0_px is not None,
                "bounds_known": self.bounds0_px is not None,
            },
            slide_digest=info.digest,
            version=wsimil.__version__,
        )
        return FeatureBag(grid=grid, features=self.features, provenance=provenance)

    @classmethod
    def of(cls, bag: FeatureBag, *, path: Path | None = None, encoder: str | None = None) -> PlacedTiles:
        """A bag of ours; `path` is its file where that is HDF5, `encoder` its name where the bag has none.

        Where JPEG was decoded at half scale, other tools find tiles on level 0, as the file has not all levels of the slide; so
        they do where levels were read that OpenSlide does not see, or counts others among them.
        """
        grid, slide, spec = bag.grid, bag.grid.slide, bag.grid.spec
        on_level0 = bag.provenance.half_scale or slide.vendor in _OWN_LEVELS
        name = bag.provenance.encoder.get("name")
        return cls(
            slide_id=bag.slide_id,
            features=bag.features,
            xy0=grid.xy0,
            size0=grid.size0,
            size_px=spec.size_px,
            stride_px=spec.stride_px,
            mpp=slide.mpp,
            mpp_source=slide.mpp_source,
            mpp_detail=slide.mpp_detail,
            slide_size0_px=slide.size0_px if bag.size_known else None,
            bounds0_px=slide.bounds0_px if bag.bounds_known else None,
            level_downsamples=(1.0,) if on_level0 else slide.level_downsamples,
            read_level=0 if on_level0 else grid.read_level,
            read_px=max(1, round_half_up(grid.size0)) if on_level0 else grid.read_px,
            tissue=None if np.isnan(grid.tissue).any() else grid.tissue,
            encoder=encoder if name is None else str(name),
            info=slide,
            provenance=bag.provenance,
            linkable=path,
        )


def place(bag: PeerBag, known: KnownSlide | None = None) -> PlacedTiles:
    """The bag's tiles in level-0 px and its rows in their order.

    Raises StoreError where that cannot be known, where tiles lie on each other, or where what is known contradicts itself.
    """
    header, known = bag.header, known or KnownSlide()
    if bag.places is None:
        raise StoreError(
            f"{header.path}: it has no coordinates, and there are none beside it; give the folder that holds them too (CLAM:"
            " h5_files beside pt_files; slide2vec: tiles beside tile_embeddings)"
        )
    mpp, detail = _mpp(header, known)
    xy0 = _level0(bag.places, header, mpp)
    size0 = _side(header, mpp)
    # Not of the places: what is apart by less than a px may be one row of tiles.
    order = raster_order(xy0)
    xy0 = xy0[order]
    copies = len(xy0) - len(np.unique(xy0, axis=0))
    if copies:
        raise StoreError(
            f"{header.path}: {copies} of {len(xy0)} tiles lie where another one lies, wanted each place once; extract this slide"
            " again"
        )
    info = known.info
    size, bounds = _frame(header, info, xy0, size0)
    return PlacedTiles(
        slide_id=header.slide_id,
        features=bag.features[order],
        xy0=xy0,
        size0=size0,
        size_px=header.tile.size_px,
        stride_px=header.tile.stride_px or _overlapping_stride_px(xy0, size0, header.tile.size_px),
        mpp=mpp,
        mpp_source="metadata" if known.mpp is None else "override",
        mpp_detail=detail,
        slide_size0_px=size,
        bounds0_px=bounds,
        level_downsamples=info.level_downsamples if info else header.slide.level_downsamples,
        read_level=0,
        read_px=max(1, round_half_up(size0)),
        tissue=None if bag.tissue is None else bag.tissue[order],
        encoder=header.encoder,
        info=info,
        provenance=header.provenance,
    )


def raster_order(places: NDArray[np.float64] | NDArray[np.int64]) -> NDArray[np.int64]:
    """Rows by (y, x); of equal places the earlier row first."""
    return np.lexsort((places[:, 0], places[:, 1])).astype(np.int64)


def _mpp(header: PeerHeader, known: KnownSlide) -> tuple[float | None, str]:
    """µm per level-0 px: what the user gave, else what the tiler went by, else what the slide says."""
    if known.mpp is not None:
        return known.mpp, known.mpp_detail
    stated, read = header.slide.mpp, known.info
    if stated is not None and read is not None and abs(stated / read.mpp - 1) > MAX_MPP_DISAGREEMENT:
        raise StoreError(
            f"slide {header.slide_id!r}: its features say {stated:g} µm per pixel ({header.slide.mpp_detail}), the slide says"
            f" {read.mpp:g} ({read.mpp_detail}); say which with --mpp or in a manifest"
        )
    if read is not None:
        return read.mpp, read.mpp_detail
    return stated, header.slide.mpp_detail


def _level0(places: NDArray[np.float64], header: PeerHeader, mpp: float | None) -> NDArray[np.int64]:
    if not np.isfinite(places).all():
        raise StoreError(f"{header.path}: coordinates hold NaN or infinity; extract this slide again")
    if header.unit == "um":
        if mpp is None:
            raise StoreError(
                f"{header.path}: its coordinates are in µm, and how many µm a pixel of the slide has is not known; {_GIVE_MPP}"
            )
        return np.floor(places / mpp + 0.5).astype(np.int64)
    whole = np.rint(places)
    if np.abs(whole - places).max(initial=0.0) > 1e-3:
        raise StoreError(
            f"{header.path}: coordinates are no whole numbers, wanted level-0 px; extract this slide again"
        )
    return whole.astype(np.int64)


def _side(header: PeerHeader, mpp: float | None) -> float:
    if header.tile.size0 is not None:
        return header.tile.size0
    if header.tile.size_um is None:
        raise StoreError(
            f"slide {header.slide_id!r}: how large a tile is stands in the patches of create_patches_fp.py, which are not beside"
            " the features; give their folder with --patches"
        )
    if mpp is None:
        raise StoreError(
            f"{header.path}: its tiles are measured in µm, and how many µm a pixel of the slide has is not known; {_GIVE_MPP}"
        )
    return header.tile.size_um / mpp


def _overlapping_stride_px(xy0: NDArray[np.int64], size0: float, size_px: int | None) -> int | None:
    """Where most neighbors in a row overlap, by what step; CLAM and STAMP state none. `xy0` in raster order."""
    right, down = np.diff(xy0, axis=0).T
    steps, counts = np.unique(right[down == 0], return_counts=True)
    # Each place was rounded by itself: neighbors that do not overlap may be nearly a px closer than a tile is wide.
    if size_px is None or not len(steps) or steps[counts.argmax()] > size0 - 1:
        return None
    return max(1, round_half_up(steps[counts.argmax()] / size0 * size_px))


def _frame(
    header: PeerHeader, info: SlideInfo | None, xy0: NDArray[np.int64], size0: float
) -> tuple[tuple[int, int] | None, tuple[int, int, int, int] | None]:
    """Size and scanned bounds of the slide, which all tiles lie on. Raises StoreError where they do not."""
    stated = header.slide.size0_px
    if stated is not None and info is not None and stated != info.size0_px:
        raise StoreError(
            f"slide {header.slide_id!r}: its features are of a slide of {stated[0]} × {stated[1]} px, {info.path} has"
            f" {info.size0_px[0]} × {info.size0_px[1]}; give the slide that was extracted"
        )
    size = info.size0_px if info else stated
    bounds = info.bounds0_px if info else header.slide.bounds0_px
    if size is None:
        return None, bounds
    outside = np.any((xy0 >= np.array(size)) | (xy0 + size0 <= 0), axis=1)
    if outside.any():
        x, y = xy0[outside][0]
        raise StoreError(
            f"slide {header.slide_id!r}: {int(outside.sum())} of {len(xy0)} tiles lie outside of its {size[0]} × {size[1]} px,"
            f" the first at level-0 x={x}, y={y}; the slide or its µm per pixel is not the one that was extracted: correct"
            " --slides or --mpp"
        )
    return size, bounds
