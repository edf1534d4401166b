"""Tissue as it looks under H&E, drawn from noise, polygons and stamped nuclei: stroma, glands, inflammation, tumor.

All lengths are µm and scaled to px at the end, so that a slide looks the same at any resolution. A picture is two maps of dye,
hematoxylin and eosin, which become colors by Beer-Lambert's law. No image data goes in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import shapely
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy import fft
from scipy.ndimage import gaussian_filter, map_coordinates

_TEXTURE_PX = 1024
_VARIANTS = 48
_ANGLES = 16
_PAD_PX = 64
_BLOCK_ROWS = 256
_COARSE = 4

_HEMATOXYLIN = np.array([0.72, 0.66, 0.26])
_EOSIN = np.array([0.08, 0.86, 0.40])
_DYE_OD = 2.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """What lies where, in level-0 px: tissue, tumor (inside of it), and inflamed spots (x, y, radius)."""

    size_px: tuple[int, int]
    mpp: float
    tissue: shapely.MultiPolygon
    tumor: shapely.MultiPolygon
    inflamed: tuple[tuple[float, float, float], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Cell:
    """A kind of nucleus: half axes in µm and their spread, outline, dye."""

    radius_um: float
    spread: float
    stretch: float
    wobble: float
    dye: float
    chromatin: float
    rim: float
    nucleolus: float


_CELLS = {
    "fibroblast": _Cell(radius_um=2.4, spread=0.18, stretch=2.7, wobble=0.06, dye=150, chromatin=0.14, rim=0.0, nucleolus=0.0),
    "lymphocyte": _Cell(radius_um=2.7, spread=0.10, stretch=1.08, wobble=0.04, dye=205, chromatin=0.20, rim=0.0, nucleolus=0.0),
    "gland": _Cell(radius_um=3.0, spread=0.10, stretch=1.45, wobble=0.05, dye=165, chromatin=0.15, rim=0.2, nucleolus=0.1),
    "tumor": _Cell(radius_um=4.6, spread=0.26, stretch=1.35, wobble=0.13, dye=132, chromatin=0.26, rim=0.3, nucleolus=0.8),
}  # fmt: skip


class Palette:
    """Textures and nuclei at one resolution, made once and used for many slides."""

    def __init__(self, mpp: float, rng: np.random.Generator) -> None:
        self.mpp = mpp
        self.fibers = _fibers(mpp, rng)
        self.cytoplasm = _grain(mpp, rng, mean=112, spread=17)
        self.noise = np.clip(rng.normal(5, 2.4, (_TEXTURE_PX, _TEXTURE_PX)), 0, 16).astype(np.uint8)
        self.nuclei = {name: _nuclei(cell, mpp, rng) for name, cell in _CELLS.items()}


def draw(scene: Scene, palette: Palette, rng: np.random.Generator) -> NDArray[np.uint8]:
    """The slide, uint8 [h, w, 3]; its stain is drawn from `rng` too."""
    width, height = scene.size_px
    coarse = _Coarse(scene, rng)
    turned = bool(rng.integers(2))
    dye = np.zeros((height + 2 * _PAD_PX, width + 2 * _PAD_PX), np.uint8)
    for name, points, angles in coarse.cells(rng, turned=turned):
        _stamp(dye, palette.nuclei[name], points, angles, rng)
    nuclei = dye[_PAD_PX : _PAD_PX + height, _PAD_PX : _PAD_PX + width]
    fibers = palette.fibers.T if turned else palette.fibers
    textures = [_unroll(texture, rng, width) for texture in (fibers, palette.cytoplasm, palette.noise)]
    return _develop(nuclei, coarse.layers(scene.size_px), textures, _stain(rng))


def blob(rng: np.random.Generator, center: tuple[float, float], radius: float, *, wobble: float) -> shapely.Polygon:
    """A wobbly disc as a valid polygon."""
    angle = np.linspace(0, 2 * np.pi, 72, endpoint=False)
    r = np.ones_like(angle)
    for k in range(2, 9):
        r += rng.normal(0, wobble / k) * np.cos(k * angle + rng.uniform(0, 2 * np.pi))
    stretch = rng.uniform(0.85, 1.18)
    r = radius * np.clip(r, 0.4, 1.7)
    return shapely.Polygon(
        np.stack([center[0] + r * np.cos(angle) * stretch, center[1] + r * np.sin(angle) / stretch], 1)
    )


class _Coarse:
    """The scene on a raster of a quarter of the resolution: what is soft is drawn here and enlarged, and asked for cells."""

    def __init__(self, scene: Scene, rng: np.random.Generator) -> None:
        self._scene = scene
        self._um = 1 / scene.mpp
        self._shape = (scene.size_px[1] // _COARSE, scene.size_px[0] // _COARSE)
        step = scene.mpp * _COARSE
        self._tissue = self._fill(scene.tissue)
        self._tumor = self._fill(scene.tumor)
        self._strength = 195 + 45 * np.clip(self._smooth(rng, 120 / step), -1.5, 1)
        nest = self._tumor * _above(self._smooth(rng, 22 / step), rng.uniform(-0.9, -0.3))
        gaps = _above(-self._smooth(rng, 9 / step), 1.35)
        self._nest = nest * (1 - gaps)
        self._lumen = nest * gaps
        self._glands = self._place_glands(rng)
        self._epithelium = self._draw_glands(np.maximum(self._nest, self._lumen), 0, 1.0)
        self._cleft = _above(self._smooth(rng, 14 / step), 2.0) * (1 - gaussian_filter(self._epithelium, 4))
        self._inflamed = self._inflammation(rng)

    def layers(self, size_px: tuple[int, int]) -> list[NDArray[np.uint8]]:
        """Full-size shares, 0 to 255, of tissue, of cytoplasm (of glands and tumor) and of holes."""
        cytoplasm = self._draw_glands(235 * self._nest, 0, 215)
        holes = self._draw_glands(240 * np.maximum(self._lumen, self._cleft), 1, 235)
        layers = (self._tissue * self._strength, cytoplasm, holes)
        images = [Image.fromarray(gaussian_filter(layer, 0.7).astype(np.uint8)) for layer in layers]
        return [np.asarray(image.resize(size_px, Image.Resampling.BILINEAR)) for image in images]

    def cells(
        self, rng: np.random.Generator, *, turned: bool
    ) -> list[tuple[str, NDArray[np.float64], NDArray[np.float64]]]:
        """Kind, places [n, 2] in level-0 px and angles [n] of all nuclei."""
        stroma = self._tissue * (1 - self._epithelium) * (1 - self._cleft)
        found = []
        spindle = self._scatter(rng, 13, 0.5 * stroma)
        found.append(("fibroblast", spindle, rng.normal(np.pi / 2 if turned else 0, 0.35, len(spindle))))
        lymph = np.concatenate(
            [self._scatter(rng, 5.7, self._inflamed * stroma), self._scatter(rng, 16, 0.10 * stroma)]
        )
        found.append(("lymphocyte", lymph, rng.uniform(0, np.pi, len(lymph))))
        tumor = self._scatter(rng, 10.2, 0.93 * self._nest)
        found.append(("tumor", tumor, rng.uniform(0, np.pi, len(tumor))))
        rings = [self._ring(rng, outer, inner) for outer, inner in self._glands]
        if rings:
            ring = np.concatenate(rings)
            found.append(("gland", ring[:, :2], ring[:, 2]))
        return found

    def _fill(self, polygons: shapely.MultiPolygon) -> NDArray[np.float32]:
        image = Image.new("F", self._shape[::-1])
        canvas = ImageDraw.Draw(image)
        for polygon in polygons.geoms:
            canvas.polygon((np.asarray(polygon.exterior.coords) / _COARSE).ravel().tolist(), fill=1)
        return np.asarray(image)

    def _draw_glands(self, ground: NDArray[np.float32], ring: int, value: float) -> NDArray[np.float32]:
        """`ground` with the outer (0) or inner (1) outline of all glands filled."""
        image = Image.fromarray(ground.astype(np.float32))
        canvas = ImageDraw.Draw(image)
        for gland in self._glands:
            canvas.polygon((gland[ring] / _COARSE).ravel().tolist(), fill=value)
        return np.asarray(image)

    def _smooth(self, rng: np.random.Generator, sigma: float) -> NDArray[np.float32]:
        """Noise with that correlation length and unit variance, made small and enlarged."""
        shrink = max(1.0, sigma / 2)
        small = tuple(int(np.ceil(n / shrink)) + 4 for n in self._shape)
        noise = gaussian_filter(rng.standard_normal(small, np.float32), sigma / shrink, mode="wrap")
        image = Image.fromarray(noise / noise.std()).resize(self._shape[::-1], Image.Resampling.BICUBIC)
        return np.asarray(image, np.float32)

    def _inflammation(self, rng: np.random.Generator) -> NDArray[np.float32]:
        density = np.full(self._shape, 0.012, np.float32)
        y, x = np.ogrid[: self._shape[0], : self._shape[1]]
        for cx, cy, radius in self._scene.inflamed:
            distance = ((x - cx / _COARSE) ** 2 + (y - cy / _COARSE) ** 2) / (radius / _COARSE) ** 2
            density += 0.95 * np.exp(-(distance**1.5)).astype(np.float32)
        rough = 0.75 + 0.25 * self._smooth(rng, 12 * self._um / _COARSE)
        return np.clip(density * rough, 0, 0.95).astype(np.float32)

    def _place_glands(self, rng: np.random.Generator) -> list[tuple[NDArray[np.float64], NDArray[np.float64]]]:
        """Outlines of benign glands and of their lumina, level-0 px: round, regular, outside of tumor."""
        room = self._smooth(rng, 90 * self._um / _COARSE) > rng.uniform(-1.3, 0.6)
        keep = (self._tissue > 0) & (gaussian_filter(self._tumor, 3) < 0.01) & room
        angle = np.linspace(0, 2 * np.pi, 40, endpoint=False)
        taken = np.empty((0, 3))
        glands = []
        for x, y in rng.permutation(self._scatter(rng, 20, keep, jitter=0.5)):
            radius = rng.uniform(23, 38) * self._um
            if (np.hypot(taken[:, 0] - x, taken[:, 1] - y) < taken[:, 2] + radius + 8 * self._um).any():
                continue
            waves = [rng.normal(0, 0.05) * np.cos(k * angle + rng.uniform(0, 2 * np.pi)) for k in (2, 3, 4)]
            r = radius * (1 + np.sum(waves, axis=0))
            circle = np.stack([np.cos(angle), np.sin(angle)], 1) * [rng.uniform(0.85, 1.15), 1]
            outer = [x, y] + circle * r[:, None]
            if self._inside(outer, keep):
                taken = np.vstack([taken, [x, y, radius]])
                glands.append((outer, [x, y] + circle * (r * rng.uniform(0.22, 0.5))[:, None]))
        return glands

    def _inside(self, points: NDArray[np.float64], mask: NDArray[np.bool_]) -> bool:
        j, i = (points / _COARSE).astype(np.int64).T
        inside = (i >= 0) & (j >= 0) & (i < mask.shape[0]) & (j < mask.shape[1])
        return bool(inside.all() and mask[i, j].mean() > 0.9)

    def _ring(
        self, rng: np.random.Generator, outer: NDArray[np.float64], inner: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Nuclei at the base of a gland's epithelium, x, y and angle, pointing to its lumen."""
        center = outer.mean(axis=0)
        around = np.linalg.norm(np.diff(outer, axis=0, append=outer[:1]), axis=1).sum() / self._um
        count = max(6, int(around / 5.8))
        where = (np.arange(count) + rng.uniform(-0.25, 0.25, count)) / count * len(outer)
        index = where.astype(np.int64) % len(outer)
        depth = rng.uniform(0.12, 0.30, count)[:, None]
        share = (where % 1)[:, None]
        edge = outer[index] * (1 - share) + outer[(index + 1) % len(outer)] * share
        lumen = inner[index] * (1 - share) + inner[(index + 1) % len(inner)] * share
        place = edge * (1 - depth) + lumen * depth
        outward = place - center
        return np.column_stack([place, np.arctan2(outward[:, 1], outward[:, 0]) + rng.normal(0, 0.15, len(index))])

    def _scatter(
        self,
        rng: np.random.Generator,
        spacing_um: float,
        chance: NDArray[np.floating] | NDArray[np.bool_],
        *,
        jitter: float = 0.36,
    ) -> NDArray[np.float64]:
        """Points about `spacing_um` apart, each kept with the chance at its place, [n, 2] level-0 px."""
        spacing = spacing_um * self._um
        width, height = self._scene.size_px
        y, x = np.mgrid[0 : height / spacing, 0 : width / spacing].reshape(2, -1)
        points = np.stack([x + 0.5 * (y % 2), y], 1) + rng.uniform(-jitter, jitter, (x.size, 2)) + 0.25
        points = points * spacing
        points = points[(points >= 0).all(axis=1) & (points < [width, height]).all(axis=1)]
        j, i = (points / _COARSE).astype(np.int64).T
        i, j = np.minimum(i, chance.shape[0] - 1), np.minimum(j, chance.shape[1] - 1)
        return np.asarray(points[rng.random(len(points)) < chance[i, j]])


def _above(values: NDArray[np.float32], threshold: float) -> NDArray[np.float32]:
    """1 above a threshold, 0 below, with a soft edge."""
    return np.asarray(np.clip((values - np.float32(threshold)) * 6 + 0.5, 0, 1), np.float32)


def _smoothed(rng: np.random.Generator, sigma_y: float, sigma_x: float) -> NDArray[np.float32]:
    """A texture of noise with those correlation lengths in px and unit variance, which wraps around: filtered by FFT."""
    noise = fft.rfft2(rng.standard_normal((_TEXTURE_PX, _TEXTURE_PX), np.float32))
    y = np.exp(-2 * (np.pi * sigma_y * fft.fftfreq(_TEXTURE_PX)) ** 2)
    x = np.exp(-2 * (np.pi * sigma_x * fft.rfftfreq(_TEXTURE_PX)) ** 2)
    smooth = fft.irfft2(noise * y[:, None] * x, s=(_TEXTURE_PX, _TEXTURE_PX)).astype(np.float32)
    return np.asarray((smooth - smooth.mean()) / smooth.std(), np.float32)


def _fibers(mpp: float, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Eosin of stroma: wavy strands along x, with gaps; wraps around."""
    strands = ((0.45, 7.0, 0.45), (1.0, 18.0, 0.9), (2.6, 42.0, 0.8))
    layers = [weight * _smoothed(rng, thin_um / mpp, long_um / mpp) for thin_um, long_um, weight in strands]
    bend = _smoothed(rng, 22 / mpp, 26 / mpp) * (7 / mpp)
    y, x = np.mgrid[:_TEXTURE_PX, :_TEXTURE_PX].astype(np.float32)
    total = map_coordinates(np.sum(layers, axis=0), [y + bend, x], order=1, mode="grid-wrap")
    eosin = 118 + 36 * np.tanh(total / 1.5) + 7 * _smoothed(rng, 0.5 / mpp, 0.5 / mpp)
    return np.asarray(np.clip(eosin - 60 * np.clip(-total - 1.7, 0, 1), 0, 225), np.uint8)


def _grain(mpp: float, rng: np.random.Generator, *, mean: float, spread: float) -> NDArray[np.uint8]:
    grain = 0.6 * _smoothed(rng, 0.6 / mpp, 0.6 / mpp) + 0.8 * _smoothed(rng, 4 / mpp, 4 / mpp)
    return np.asarray(np.clip(mean + spread * grain, 0, 255), np.uint8)


def _nuclei(cell: _Cell, mpp: float, rng: np.random.Generator) -> list[list[NDArray[np.uint8]]]:
    """Variants of one kind for each of the angles: maps of dye with soft edges."""
    return [[_nucleus(cell, mpp, np.pi * k / _ANGLES, rng) for _ in range(_VARIANTS // 4)] for k in range(_ANGLES)]


def _nucleus(cell: _Cell, mpp: float, angle: float, rng: np.random.Generator) -> NDArray[np.uint8]:
    radius = cell.radius_um / mpp * max(0.55, rng.normal(1, cell.spread))
    stretch = max(1.0, cell.stretch * rng.normal(1, 0.10))
    long, short = radius * np.sqrt(stretch), radius / np.sqrt(stretch)
    half = int(np.ceil(long * (1 + 2.5 * cell.wobble))) + 2
    y, x = np.mgrid[-half : half + 1, -half : half + 1] + rng.uniform(-0.5, 0.5, (2, 1, 1))
    u, v = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    theta = np.arctan2(v / short, u / long)
    edge = 1 + sum(
        rng.normal(0, cell.wobble / (k - 1)) * np.cos(k * theta + rng.uniform(0, 2 * np.pi)) for k in range(2, 6)
    )
    distance = np.hypot(u / long, v / short) / np.clip(edge, 0.6, 1.5)
    soft = np.clip((1 - distance) * short / (0.45 / mpp) + 0.5, 0, 1)
    texture = gaussian_filter(rng.standard_normal(x.shape), 0.5 / mpp)
    dye = cell.dye * rng.uniform(0.82, 1.12) * (1 + cell.chromatin * texture / texture.std())
    dye = dye * (1 - cell.rim + cell.rim * np.clip(distance, 0, 1) ** 3 * 2)
    if rng.random() < cell.nucleolus:
        a, b = rng.uniform(-0.4, 0.4, 2)
        dye = dye + 70 * np.exp(-(((u - a * long) ** 2 + (v - b * short) ** 2) / (0.8 / mpp) ** 2))
    return np.asarray(np.clip(dye, 0, 250) * soft, np.uint8)


def _stamp(
    dye: NDArray[np.uint8],
    nuclei: Sequence[Sequence[NDArray[np.uint8]]],
    points: NDArray[np.float64],
    angles: NDArray[np.float64],
    rng: np.random.Generator,
) -> None:
    """Lay nuclei down, the darker one on top."""
    turns = (np.round(angles / np.pi * _ANGLES).astype(np.int64) % _ANGLES).tolist()
    kinds = rng.integers(0, len(nuclei[0]), len(points)).tolist()
    places = (np.round(points).astype(np.int64) + _PAD_PX).tolist()
    for (x, y), turn, kind in zip(places, turns, kinds, strict=True):
        stamp = nuclei[turn][kind]
        half = len(stamp) // 2
        window = dye[y - half : y + half + 1, x - half : x + half + 1]
        np.maximum(window, stamp, out=window)


def _unroll(texture: NDArray[np.uint8], rng: np.random.Generator, width: int) -> NDArray[np.uint8]:
    """The texture from a random place on, repeated to `width`; rows wrap by index."""
    rolled = np.roll(texture, rng.integers(0, _TEXTURE_PX, 2), (0, 1))
    return np.tile(rolled, (2, -(-width // _TEXTURE_PX)))[:, :width]


def _stain(rng: np.random.Generator) -> NDArray[np.uint8]:
    """Color for each pair of dyes, uint8 [256 * 256, 3], hematoxylin first: every slide has its own."""
    hematoxylin = _HEMATOXYLIN * rng.normal(1, 0.05, 3) * rng.uniform(0.72, 1.22)
    eosin = _EOSIN * rng.normal(1, 0.06, 3) * rng.uniform(0.58, 1.22)
    light = 244 + rng.normal(0, 2, 3)
    amount = np.arange(256) / 255 * _DYE_OD
    od = amount[:, None, None] * hematoxylin + 0.62 * amount[None, :, None] * eosin
    return np.asarray(np.clip(light * np.exp(-od), 0, 255), np.uint8).reshape(-1, 3)


def _develop(
    nuclei: NDArray[np.uint8],
    layers: Sequence[NDArray[np.uint8]],
    textures: Sequence[NDArray[np.uint8]],
    colors: NDArray[np.uint8],
) -> NDArray[np.uint8]:
    """Dyes to colors, in blocks of rows that stay in the cache."""
    fibers, cytoplasm, noise = textures
    picture = np.empty((*nuclei.shape, 3), np.uint8)
    for top in range(0, len(nuclei), _BLOCK_ROWS):
        rows = slice(top, min(top + _BLOCK_ROWS, len(nuclei)))
        first = top % _TEXTURE_PX
        part = slice(first, first + rows.stop - top)
        tissue, cell, hole = (layer[rows].astype(np.uint16) for layer in layers)
        eosin = (fibers[part] * tissue >> 8) * (255 - cell) + cytoplasm[part] * cell
        eosin = (eosin >> 8) * (255 - hole) >> 8
        hematoxylin = ((cytoplasm[part] * cell >> 8) * (255 - hole) >> 10) + nuclei[rows]
        index = (np.minimum(hematoxylin, 255) << 8) + np.minimum(eosin + noise[part], 255)
        np.take(colors, index, axis=0, out=picture[rows])
    return picture
