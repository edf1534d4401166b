"""The contract of an encoder, and the card that fixes its embedding. torch is not imported here: reading cards is quick."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias

from wsimil.provenance import Json

if TYPE_CHECKING:
    import torch

Pooling: TypeAlias = Literal["cls", "cls+mean", "mean", "own"]
Precision: TypeAlias = Literal["fp32", "fp16", "bf16"]
Layout: TypeAlias = Literal["timm", "transformers", "dinov2", "efficientnet_pytorch", "swin"]

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HALF = (0.5, 0.5, 0.5)


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderCard:
    """Everything that fixes an embedding; a published name alone does not.

    `dim` is the length of a vector after `pooling`: "cls" is the class token after the last norm, "cls+mean" appends the mean
    of the patch tokens (registers left out), "mean" averages all positions, "own" is what the model's head does before its
    classifier. `input_px` is the side that the authors use; other sides are taken if they are multiples of `multiple_px`
    (0: none are). `mpp` are the spacings it was trained at, µm per px, the recommended one first; empty for ImageNet models.
    `mean` and `std` are on the [0, 1] scale. `published_resize` says how the authors bring a tile to `input_px`; in this
    package the tiling does that, by its own declared rule.

    `architecture` and `arguments` are timm's; `layout` names the key names of the published file; `unused` are prefixes of
    keys that it may hold beyond the encoder. Weights come from `hub_files` (tried in order) of `hub_id`, or from
    `package_file`, "package/path", of an installed package. `fold_batchnorm` folds them into the convolutions before them.
    `unavailable` says why this encoder cannot be built here; empty for all others.
    """

    name: str
    dim: int
    input_px: int
    multiple_px: int = 0
    mpp: tuple[float, ...]
    pooling: Pooling
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    published_resize: str
    license: str
    license_url: str
    gated: bool
    paper: str
    hub_id: str = ""
    hub_files: tuple[str, ...] = ()
    package_file: str = ""
    weights_sha256: str | None = None
    architecture: str = ""
    arguments: Mapping[str, Json] = field(default_factory=dict)
    layout: Layout = "timm"
    unused: tuple[str, ...] = ()
    fold_batchnorm: bool = False
    unavailable: str = ""

    def __post_init__(self) -> None:
        if self.dim < 1 or self.input_px < 1 or self.multiple_px < 0:
            raise ValueError(f"card {self.name!r}: dim and input_px must be at least 1, multiple_px at least 0")
        if not all(mpp > 0 for mpp in self.mpp) or not all(std > 0 for std in self.std):
            raise ValueError(f"card {self.name!r}: mpp and std must be greater than 0")
        if bool(self.architecture) == bool(self.unavailable):
            raise ValueError(
                f"card {self.name!r}: an encoder has either an architecture or a reason why it is unavailable"
            )

    def accepts(self, side_px: int) -> bool:
        """Whether tiles of this side can be embedded."""
        return side_px == self.input_px or (
            self.multiple_px > 0 and side_px >= self.multiple_px and side_px % self.multiple_px == 0
        )


class Encoder(Protocol):
    """Turns tiles into vectors: in eval mode, without gradients, by its own normalization."""

    @property
    def card(self) -> EncoderCard:
        """What these vectors are."""
        ...

    @property
    def precision(self) -> Precision:
        """In which precision `embed` runs unless told otherwise."""
        ...

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        ...

    @property
    def compiled(self) -> bool:
        """Whether the model is compiled, for which every batch should have one length."""
        ...

    @property
    def transform(self) -> Mapping[str, Json]:
        """What is done to a tile before the model sees it."""
        ...

    @property
    def provenance(self) -> Mapping[str, Json]:
        """What fixes the embedding: name, pooling, dim, input_px, transform, weights_sha256."""
        ...

    def embed(self, tiles: torch.Tensor, *, precision: Precision | None = None) -> torch.Tensor:
        """Map uint8 [b, h, w, 3] on any device to [b, dim] on the encoder's, in float32 or the precision's type.

        Raises ValueError for another type, layout or side.
        """
        ...
