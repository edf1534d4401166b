"""Other tools' own writers and readers, run in an environment of theirs: python run.py VERB ARGUMENTS.

Features and places that go in or come out stand in an .npz with arrays `features` and `xy0`.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

warnings.simplefilter("ignore")  # of theirs

import numpy as np  # noqa: E402


def write_lazyslide(slide: str, folder: str, truth: str) -> None:
    """Tiles of 256 px at 0.5 µm/px, the table's rows turned round against them, and a second encoder."""
    from shapely import box
    from spatialdata.models import TableModel
    from wsidata import TileSpec, open_wsi
    from wsidata.io import add_features, add_tiles, add_tissues

    wsi = open_wsi(slide, reader="openslide", store=None)
    spec = TileSpec.from_wsidata(wsi, 256, mpp=0.5)
    height, width = wsi.properties.shape
    add_tissues(wsi, "tissues", [box(0, 0, width, height)])
    side = spec.base_width
    xy0 = np.array([[x, y] for x in range(0, width - side, side) for y in range(0, height - side, side)])
    add_tiles(wsi, "tiles", xy0, spec, np.zeros(len(xy0), int))
    features = np.random.default_rng(0).normal(size=(len(xy0), 5)).astype(np.float32)
    add_features(wsi, "resnet50_tiles", "tiles", features)
    add_features(wsi, "plip_tiles", "tiles", features[:, :3] * 2)
    turned = wsi.tables["resnet50_tiles"][::-1].copy()
    turned.uns.pop("spatialdata_attrs", None)
    wsi.tables["resnet50_tiles"] = TableModel.parse(
        turned, region="tiles", region_key="library_id", instance_key="tile_id"
    )
    wsi.write(str(Path(folder) / f"{Path(slide).stem}.zarr"))
    np.savez(truth, features=features, xy0=xy0, side=side)


def read_lazyslide(store: str, slide: str, truth: str) -> None:
    """Through spatialdata, joined by its own rule, and through wsidata with the slide beside it."""
    import spatialdata
    from wsidata import open_wsi

    data = spatialdata.read_zarr(store)
    (name,) = data.tables
    shapes, table = spatialdata.join_spatialelement_table(
        sdata=data, spatial_element_names="tiles", table_name=name, how="inner"
    )
    bounds = shapes["tiles"].bounds
    wsi = open_wsi(slide, store=store, reader="openslide")
    spec = wsi.tile_spec("tiles")
    if len(wsi["tiles"]) != len(table) or wsi[name].X.shape != table.X.shape:
        raise AssertionError("wsidata reads something else than spatialdata")
    np.savez(
        truth,
        features=np.asarray(table.X),
        xy0=bounds[["minx", "miny"]].to_numpy(),
        side=(bounds["maxx"] - bounds["minx"]).to_numpy(),
        spec=np.array([spec.base_width, spec.width, spec.mpp, wsi.properties.mpp]),
    )


def write_slide2vec(slide: str, folder: str, truth: str) -> None:
    """hs2p tiles the slide, slide2vec writes what an encoder would have said, as tensor and as npz."""
    import torch
    from hs2p import SegmentationConfig, SlideSpec, TilingConfig, save_tiling_result, tile_slide
    from slide2vec.artifacts import write_tile_embeddings

    path = Path(slide)
    for suffix, form in (("a", "pt"), ("b", "npz")):
        name = f"{path.stem}_{suffix}"
        result = tile_slide(
            SlideSpec(sample_id=name, image_path=path),
            tiling=TilingConfig(
                requested_spacing_um=0.51, requested_tile_size_px=128, tolerance=0.05, overlap=0.0, backend="openslide"
            ),
            segmentation=SegmentationConfig(method="hsv", downsample=4),
        )
        artifacts = save_tiling_result(result, Path(folder))
        features = np.random.default_rng(1).normal(size=(len(result.tiles.x), 4)).astype(np.float32)
        write_tile_embeddings(
            name,
            torch.from_numpy(features) if form == "pt" else features,
            output_dir=folder,
            output_format=form,
            metadata={
                "encoder_name": "uni2",
                "coordinates_npz_path": str(artifacts.coordinates_npz_path),
                "coordinates_meta_path": str(artifacts.coordinates_meta_path),
                "tile_size_lv0": int(result.tiles.tile_size_lv0),
                "requested_tile_size_px": 128,
                "requested_spacing_um": 0.51,
                "encoder_input_size_px": 224,
            },
            tile_index=result.tiles.tile_index if form == "npz" else None,
        )
    xy0 = np.stack([result.tiles.x, result.tiles.y], axis=1)
    np.savez(truth, features=features, xy0=xy0, side=result.tiles.tile_size_lv0, tissue=result.tiles.tissue_fractions)


def read_torchmil(base: str, encoder: str, slide: str, truth: str) -> None:
    """torchmil's reader of TRIDENT folders, which counts tiles by `patch_size`."""
    import tempfile

    from torchmil.datasets.trident_wsi_dataset import TridentWSIDataset

    with tempfile.TemporaryDirectory() as folder:
        labels = Path(folder) / "labels.csv"
        labels.write_text(f"wsi,label\n{slide},1\n")
        dataset = TridentWSIDataset(
            base_path=f"{base}/",
            labels_path=str(labels),
            feature_extractor=encoder,
            patch_size=1,
            bag_keys=["X", "coords"],
            wsi_name_col="wsi",
            wsi_label_col="label",
        )
        bag = dataset[0]
        np.savez(truth, features=bag["X"].numpy(), xy0=bag["coords"].numpy())


if __name__ == "__main__":
    {
        "write_lazyslide": write_lazyslide,
        "read_lazyslide": read_lazyslide,
        "write_slide2vec": write_slide2vec,
        "read_torchmil": read_torchmil,
    }[sys.argv[1]](*sys.argv[2:])
