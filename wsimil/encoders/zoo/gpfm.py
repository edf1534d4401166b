"""GPFM (ViT-L/14) of HKUST. Ma et al. 2025, Nature Biomedical Engineering, arXiv:2407.18449.

The authors tile at 512 px and about 0.25 µm/px and resize to 224, which is about 0.57 µm/px as the model sees it.
"""

from wsimil.encoders.base import IMAGENET_MEAN, IMAGENET_STD, EncoderCard

CARDS = (
    EncoderCard(
        name="gpfm",
        dim=1024,
        input_px=224,
        mpp=(0.5,),
        pooling="cls",
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        published_resize="tiles of 512 px at 0.25 µm/px, resize to 224 px, bicubic",
        license="MIT by its model page, CC-BY-NC-ND-4.0 by its repository",
        license_url="https://huggingface.co/majiabo/GPFM",
        gated=False,
        paper="arXiv:2407.18449",
        hub_id="majiabo/GPFM",
        hub_files=("GPFM.pth",),
        architecture="vit_large_patch14_dinov2",
        arguments={"img_size": 224, "init_values": 1e-5},
        layout="dinov2",
        unused=("mask_token", "dino_head.", "ibot_head."),
    ),
)
