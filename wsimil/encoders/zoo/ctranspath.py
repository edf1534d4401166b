"""CTransPath (Swin-T with a convolutional stem). Wang et al. 2022, Medical Image Analysis 81:102559.

Trained at 20x; its authors recommend 1.0 µm/px for features. Weights in timm's layout by L. Aurent; the original
ctranspath.pth fits too.
"""

from wsimil.encoders.base import IMAGENET_MEAN, IMAGENET_STD, EncoderCard

CARDS = (
    EncoderCard(
        name="ctranspath",
        dim=768,
        input_px=224,
        mpp=(1.0, 0.5),
        pooling="mean",
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        published_resize="resize to 224 px, bilinear",
        license="GPL-3.0, non-commercial by its repository",
        license_url="https://huggingface.co/1aurent/swin_tiny_patch4_window7_224.CTransPath",
        gated=False,
        paper="doi:10.1016/j.media.2022.102559",
        hub_id="1aurent/swin_tiny_patch4_window7_224.CTransPath",
        hub_files=("model.safetensors", "pytorch_model.bin"),
        architecture="swin_tiny_patch4_window7_224",
        arguments={"embed_layer": "ConvStem"},
        layout="swin",
        unused=("head.",),
    ),
)
