"""The ViTs of kaiko.ai (S/16, S/8, B/16, B/8 by DINO; L/14 with 4 registers by DINOv2), trained on TCGA.

Aben et al. 2024, arXiv:2404.15217; weights in timm's layout by L. Aurent.
"""

from wsimil.encoders.base import HALF, EncoderCard

_WEIGHTS = "kaiko_ai_towards_large_pathology_fms"


def _card(name: str, dim: int, patch_px: int, architecture: str) -> EncoderCard:
    hub_id = f"1aurent/{architecture}.{_WEIGHTS}"
    return EncoderCard(
        name=name,
        dim=dim,
        input_px=224,
        multiple_px=patch_px,
        mpp=(0.5, 0.25, 1.0, 2.0),
        pooling="cls",
        mean=HALF,
        std=HALF,
        published_resize="resize to 224 px, bilinear, center crop",
        license="kaiko.ai non-commercial",
        license_url=f"https://huggingface.co/{hub_id}",
        gated=False,
        paper="arXiv:2404.15217",
        hub_id=hub_id,
        hub_files=("model.safetensors", "pytorch_model.bin"),
        architecture=architecture,
        arguments={"dynamic_img_size": True},
    )


CARDS = (
    _card("kaiko-vits16", 384, 16, "vit_small_patch16_224"),
    _card("kaiko-vits8", 384, 8, "vit_small_patch8_224"),
    _card("kaiko-vitb16", 768, 16, "vit_base_patch16_224"),
    _card("kaiko-vitb8", 768, 8, "vit_base_patch8_224"),
    # Its positions are those of 518 px: timm brings them to the tile's grid at every pass.
    _card("kaiko-vitl14", 1024, 14, "vit_large_patch14_reg4_dinov2"),
)
