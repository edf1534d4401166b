"""The tile encoder of Prov-GigaPath (ViT-g/16) of Providence and Microsoft Research. Xu et al. 2024, Nature.

The authors tile at 256 px and keep the central 224; a tile of 224 px at the same spacing is the same picture.
"""

from wsimil.encoders.base import IMAGENET_MEAN, IMAGENET_STD, EncoderCard

CARDS = (
    EncoderCard(
        name="gigapath",
        dim=1536,
        input_px=224,
        mpp=(0.5,),
        pooling="cls",
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        published_resize="tiles of 256 px at 0.5 µm/px, center crop 224",
        license="Apache-2.0, research use only by its model page",
        license_url="https://huggingface.co/prov-gigapath/prov-gigapath",
        gated=True,
        paper="doi:10.1038/s41586-024-07441-w",
        hub_id="prov-gigapath/prov-gigapath",
        hub_files=("pytorch_model.bin", "model.safetensors"),
        architecture="vit_giant_patch14_dinov2",
        arguments={
            "img_size": 224,
            "patch_size": 16,
            "embed_dim": 1536,
            "depth": 40,
            "num_heads": 24,
            "mlp_ratio": 5.33334,
            "init_values": 1e-5,
        },
    ),
)
