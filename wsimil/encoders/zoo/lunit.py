"""The DINO ViT-S/16 and ViT-S/8 of Lunit, trained on TCGA and TULIP at 20x and 40x.

Kang et al. 2023, arXiv:2212.04690; weights in timm's layout by L. Aurent.
"""

from wsimil.encoders.base import EncoderCard


def _card(name: str, architecture: str) -> EncoderCard:
    hub_id = f"1aurent/{architecture}.lunit_dino"
    return EncoderCard(
        name=name,
        dim=384,
        input_px=224,
        mpp=(0.5, 0.25),
        pooling="cls",
        mean=(0.70322989, 0.53606487, 0.66096631),
        std=(0.21716536, 0.26081574, 0.20723464),
        published_resize="resize to 224 px, bicubic",
        license="Lunit non-commercial",
        license_url=f"https://huggingface.co/{hub_id}",
        gated=False,
        paper="arXiv:2212.04690",
        hub_id=hub_id,
        hub_files=("model.safetensors", "pytorch_model.bin"),
        architecture=architecture,
    )


CARDS = (_card("lunit-vits16", "vit_small_patch16_224"), _card("lunit-vits8", "vit_small_patch8_224"))
