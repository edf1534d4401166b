"""Phikon (ViT-B/16, iBOT) and Phikon-v2 (ViT-L/16, DINOv2) of Owkin. Filiot et al. 2023, medRxiv; 2024, arXiv:2409.09173."""

from wsimil.encoders.base import IMAGENET_MEAN, IMAGENET_STD, EncoderCard

CARDS = (
    EncoderCard(
        name="phikon",
        dim=768,
        input_px=224,
        mpp=(0.5,),
        pooling="cls",
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        published_resize="resize to 224 px, bilinear",
        license="Owkin non-commercial",
        license_url="https://huggingface.co/owkin/phikon",
        gated=False,
        paper="doi:10.1101/2023.07.21.23292757",
        hub_id="owkin/phikon",
        hub_files=("model.safetensors", "pytorch_model.bin"),
        architecture="vit_base_patch16_224",
        arguments={"norm_layer": "LayerNorm 1e-12"},
        layout="transformers",
    ),
    EncoderCard(
        name="phikon_v2",
        dim=1024,
        input_px=224,
        mpp=(0.5,),
        pooling="cls",
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        published_resize="resize to 224 px, bicubic",
        license="Owkin non-commercial",
        license_url="https://huggingface.co/owkin/phikon-v2",
        gated=False,
        paper="arXiv:2409.09173",
        hub_id="owkin/phikon-v2",
        hub_files=("model.safetensors", "pytorch_model.bin"),
        architecture="vit_large_patch16_224",
        arguments={"init_values": 1e-5},
        layout="transformers",
    ),
)
