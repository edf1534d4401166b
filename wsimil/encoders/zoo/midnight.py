"""Midnight-12k (ViT-g/14) of kaiko.ai. Karasikov et al. 2025, arXiv:2504.05186.

The authors recommend the class token with the mean of the patch tokens (3072); the class token alone (1536), which other
tools save under the same name, is "-cls" here.
"""

from dataclasses import replace

from wsimil.encoders.base import HALF, EncoderCard

_MIDNIGHT = EncoderCard(
    name="midnight12k",
    dim=3072,
    input_px=224,
    mpp=(0.5, 0.25, 1.0, 2.0),
    pooling="cls+mean",
    mean=HALF,
    std=HALF,
    published_resize="resize to 224 px, bilinear, center crop",
    license="MIT",
    license_url="https://huggingface.co/kaiko-ai/midnight",
    gated=False,
    paper="arXiv:2504.05186",
    hub_id="kaiko-ai/midnight",
    hub_files=("model.safetensors", "pytorch_model.bin"),
    architecture="vit_giant_patch14_dinov2",
    arguments={"img_size": 224},
    layout="transformers",
)

CARDS = (_MIDNIGHT, replace(_MIDNIGHT, name="midnight12k-cls", dim=1536, pooling="cls"))
