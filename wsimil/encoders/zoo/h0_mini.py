"""H0-mini (ViT-B/14, 4 registers), distilled from H-optimus-0. Filiot et al. 2025, arXiv:2501.16239.

Tools disagree on what "h0-mini" saves: the class token alone (768) is "h0-mini" here; with the mean of the patch tokens (1536)
it is "h0-mini-full".
"""

from dataclasses import replace

from wsimil.encoders.base import EncoderCard

_H0_MINI = EncoderCard(
    name="h0-mini",
    dim=768,
    input_px=224,
    mpp=(0.5,),
    pooling="cls",
    mean=(0.707223, 0.578729, 0.703617),
    std=(0.211883, 0.230117, 0.177517),
    published_resize="resize to 224 px, bicubic",
    license="CC-BY-NC-ND-4.0",
    license_url="https://huggingface.co/bioptimus/H0-mini",
    gated=True,
    paper="arXiv:2501.16239",
    hub_id="bioptimus/H0-mini",
    hub_files=("model.safetensors", "pytorch_model.bin"),
    architecture="vit_base_patch14_reg4_dinov2",
    arguments={
        "img_size": 224,
        "init_values": 1e-5,
        "mlp_ratio": 2.66667 * 2,
        "mlp_layer": "SwiGLUPacked",
        "act_layer": "SiLU",
    },
)

CARDS = (_H0_MINI, replace(_H0_MINI, name="h0-mini-full", dim=1536, pooling="cls+mean"))
