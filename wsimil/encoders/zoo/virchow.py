"""Virchow and Virchow2 (ViT-H/14; 4 registers in Virchow2) of Paige and Microsoft Research.

Vorontsov et al. 2024, Nature Medicine; Zimmermann et al. 2024, arXiv:2408.00738. The authors recommend the class token with
the mean of the patch tokens (2560); the class token alone (1280), which other tools save under the same name, is "-cls" here.
"""

from dataclasses import replace

from wsimil.encoders.base import IMAGENET_MEAN, IMAGENET_STD, EncoderCard

_VIRCHOW = EncoderCard(
    name="virchow",
    dim=2560,
    input_px=224,
    multiple_px=14,
    mpp=(0.5,),
    pooling="cls+mean",
    mean=IMAGENET_MEAN,
    std=IMAGENET_STD,
    published_resize="resize to 224 px, bicubic",
    license="Apache-2.0",
    license_url="https://huggingface.co/paige-ai/Virchow",
    gated=True,
    paper="doi:10.1038/s41591-024-03141-0",
    hub_id="paige-ai/Virchow",
    hub_files=("model.safetensors", "pytorch_model.bin"),
    architecture="vit_huge_patch14_224",
    arguments={
        "img_size": 224,
        "init_values": 1e-5,
        "mlp_ratio": 5.3375,
        "mlp_layer": "SwiGLUPacked",
        "act_layer": "SiLU",
        "dynamic_img_size": True,
    },
)
_VIRCHOW2 = replace(
    _VIRCHOW,
    name="virchow2",
    mpp=(0.5, 0.25, 1.0, 2.0),
    license="CC-BY-NC-ND-4.0",
    license_url="https://huggingface.co/paige-ai/Virchow2",
    paper="arXiv:2408.00738",
    hub_id="paige-ai/Virchow2",
    arguments={**_VIRCHOW.arguments, "reg_tokens": 4},
)

CARDS = (
    _VIRCHOW,
    replace(_VIRCHOW, name="virchow-cls", dim=1280, pooling="cls"),
    _VIRCHOW2,
    replace(_VIRCHOW2, name="virchow2-cls", dim=1280, pooling="cls"),
)
