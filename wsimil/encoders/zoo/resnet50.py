"""ResNet-50 with ImageNet weights, cut after its third stage: the 1024 features of CLAM.

He et al. 2016, arXiv:1512.03385; weights of torchvision. A plain "resnet50" is another embedding, of length 2048
(`timm:resnet50.tv_in1k`).
"""

from wsimil.encoders.base import IMAGENET_MEAN, IMAGENET_STD, EncoderCard

CARDS = (
    EncoderCard(
        name="resnet50_trunc",
        dim=1024,
        input_px=224,
        multiple_px=1,
        mpp=(),
        pooling="mean",
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        published_resize="resize to 224 px, bilinear",
        license="BSD-3-Clause",
        license_url="https://huggingface.co/timm/resnet50.tv_in1k",
        gated=False,
        paper="arXiv:1512.03385",
        hub_id="timm/resnet50.tv_in1k",
        hub_files=("model.safetensors", "pytorch_model.bin"),
        architecture="resnet50.tv_in1k",
        arguments={"features_only": True, "out_indices": [3]},
        unused=("layer4.", "fc."),
        fold_batchnorm=True,
    ),
)
