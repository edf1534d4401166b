"""CONCH v1.5 of the Mahmood Lab. Ding et al. 2024, arXiv:2411.19666."""

from wsimil.encoders.base import IMAGENET_MEAN, IMAGENET_STD, EncoderCard

CARDS = (
    EncoderCard(
        name="conch_v15",
        dim=768,
        input_px=448,
        mpp=(0.5,),
        pooling="own",
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        published_resize="tiles of 512 px at 0.5 µm/px, resize to 448 px, bicubic",
        license="CC-BY-NC-ND-4.0",
        license_url="https://huggingface.co/MahmoodLab/conchv1_5",
        gated=True,
        paper="arXiv:2411.19666",
        hub_id="MahmoodLab/conchv1_5",
        hub_files=("pytorch_model_vision.bin",),
        unavailable=(
            "its attention pooling is described only by code under a license that forbids derivatives (CC-BY-NC-ND-4.0), and"
            " timm has no model of it; extract its features with a tool of its authors, such as TRIDENT (--patch_encoder"
            " conch_v15) or TITAN's return_conch(), or choose another encoder from `wsimil list encoders`"
        ),
    ),
)
