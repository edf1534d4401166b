"""Hibou-B and Hibou-L (ViT/14, 4 registers, SwiGLU) of HistAI. Nechaev et al. 2024, arXiv:2406.05074."""

from dataclasses import replace

from wsimil.encoders.base import EncoderCard

_HIBOU_L = EncoderCard(
    name="hibou_l",
    dim=1024,
    input_px=224,
    mpp=(0.5,),
    pooling="cls",
    mean=(0.7068, 0.5755, 0.722),
    std=(0.195, 0.2316, 0.1816),
    published_resize="resize to 224 px, bicubic",
    license="Apache-2.0",
    license_url="https://huggingface.co/histai/hibou-L",
    gated=True,
    paper="arXiv:2406.05074",
    hub_id="histai/hibou-L",
    hub_files=("model.safetensors", "pytorch_model.bin"),
    architecture="vit_large_patch14_reg4_dinov2",
    arguments={
        "img_size": 224,
        "init_values": 1e-5,
        "mlp_ratio": 2 * 2736 / 1024,
        "mlp_layer": "SwiGLUPacked",
        "act_layer": "SiLU",
    },
    layout="transformers",
)

CARDS = (
    _HIBOU_L,
    replace(
        _HIBOU_L,
        name="hibou_b",
        dim=768,
        license_url="https://huggingface.co/histai/hibou-b",
        hub_id="histai/hibou-b",
        architecture="vit_base_patch14_reg4_dinov2",
        arguments={**_HIBOU_L.arguments, "mlp_ratio": 2 * 2048 / 768},
    ),
)
