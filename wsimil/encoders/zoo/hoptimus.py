"""H-optimus-0 and H-optimus-1 (ViT-g/14, 4 registers) of Bioptimus. github.com/bioptimus/releases."""

from dataclasses import replace

from wsimil.encoders.base import EncoderCard

_HOPTIMUS0 = EncoderCard(
    name="hoptimus0",
    dim=1536,
    input_px=224,
    mpp=(0.5,),
    pooling="cls",
    mean=(0.707223, 0.578729, 0.703617),
    std=(0.211883, 0.230117, 0.177517),
    published_resize="none: tiles of 224 px at 0.5 µm/px",
    license="Apache-2.0",
    license_url="https://huggingface.co/bioptimus/H-optimus-0",
    gated=True,
    paper="github.com/bioptimus/releases",
    hub_id="bioptimus/H-optimus-0",
    hub_files=("model.safetensors", "pytorch_model.bin"),
    architecture="vit_giant_patch14_reg4_dinov2",
    arguments={"img_size": 224, "init_values": 1e-5, "dynamic_img_size": False},
)

CARDS = (
    _HOPTIMUS0,
    replace(
        _HOPTIMUS0,
        name="hoptimus1",
        license="CC-BY-NC-ND-4.0",
        license_url="https://huggingface.co/bioptimus/H-optimus-1",
        hub_id="bioptimus/H-optimus-1",
    ),
)
