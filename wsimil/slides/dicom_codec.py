"""One frame of a DICOM image to RGB, whatever it is compressed with.

Colors. Converters often copy or recompress frames and leave the header's photometric interpretation as it was, so what a
frame says of itself goes first, as with pydicom and most viewers: the JFIF or Adobe marker of a JPEG, the component
transform of a JPEG 2000 codestream, which its decoder undoes. The header's word counts where the frame says nothing. OpenSlide
heeds the header alone in JPEG, and never in JPEG 2000, and shows such files in false colors (openslide/openslide#558, #772).
Transfer syntaxes: DICOM PS3.5, section 10; photometric interpretations: PS3.3, C.7.6.3.1.2.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Literal

import imagecodecs
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from wsimil.slides.jpeg import Space, decode_jpeg, stated_space, stream_head
from wsimil.slides.stored_tiles import NotDirectError

Kind = Literal["native", "JPEG", "JPEG 2000", "JPEG-LS", "RLE"]

_KINDS: dict[str, Kind] = {
    "1.2.840.10008.1.2": "native",
    "1.2.840.10008.1.2.1": "native",
    "1.2.840.10008.1.2.5": "RLE",
    "1.2.840.10008.1.2.4.50": "JPEG",
    "1.2.840.10008.1.2.4.80": "JPEG-LS",
    "1.2.840.10008.1.2.4.81": "JPEG-LS",
    "1.2.840.10008.1.2.4.90": "JPEG 2000",
    "1.2.840.10008.1.2.4.91": "JPEG 2000",
}
_SPACES: dict[str, Space] = {
    "RGB": "RGB",
    "YBR_FULL": "YCbCr",
    "YBR_FULL_422": "YCbCr",
    "YBR_ICT": "YCbCr",
    "YBR_RCT": "YCbCr",
}
_CODESTREAM = b"\xff\x4f\xff\x51"
_COMPONENTS_AT = 40
_CODING_STYLE, _FIRST_TILE = 0xFF52, 0xFF90


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameDecoder:
    """How the frames of an image are compressed; `jpeg_head` is what goes before each JPEG, None for others."""

    kind: Kind
    jpeg_head: bytes | None = None
    leaves_ycbcr: bool = False

    def decode(self, frame: bytes, output: NDArray[np.uint8], *, half: bool = False) -> None:
        """Fill `output` RGB [h, w, 3], contiguous, of the frame's size; of half of it with `half`, which only JPEG knows.

        Raises ValueError or the codec's error.
        """
        if self.jpeg_head is not None:
            decode_jpeg(self.jpeg_head, frame, output, half=half)
        elif self.kind == "JPEG 2000":
            imagecodecs.jpeg2k_decode(frame, out=output)
            if self.leaves_ycbcr:
                size = output.shape[1], output.shape[0]
                output[...] = np.asarray(Image.frombytes("YCbCr", size, output.tobytes()).convert("RGB"))
        elif self.kind == "JPEG-LS":
            imagecodecs.jpegls_decode(frame, out=output)
        elif self.kind == "RLE":
            planes = np.frombuffer(imagecodecs.dicomrle_decode(frame, dtype="u1"), np.uint8)
            output[...] = planes.reshape(3, *output.shape[:2]).transpose(1, 2, 0)
        else:
            output[...] = np.frombuffer(frame, np.uint8).reshape(output.shape)


def frame_kind(syntax: str) -> Kind:
    """What a transfer syntax says of the frames. Raises NotDirectError for one that is not read."""
    if syntax not in _KINDS:
        raise NotDirectError(
            f"its transfer syntax is {syntax}, wanted one of uncompressed, JPEG, JPEG 2000, JPEG-LS, RLE"
        )
    return _KINDS[syntax]


def frame_decoder(kind: Kind, photometric: str, sample: bytes) -> FrameDecoder:
    """The decoder for all frames of an image, of which `sample` is one. Raises NotDirectError for colors that are not read."""
    if photometric not in _SPACES:
        raise NotDirectError(f"its pixels are {photometric or 'of no stated color space'}, wanted color (RGB or YBR)")
    space = _SPACES[photometric]
    if kind == "JPEG":
        return FrameDecoder(kind=kind, jpeg_head=stream_head(stated_space(sample) or space))
    if kind == "JPEG 2000":
        return FrameDecoder(kind=kind, leaves_ycbcr=space == "YCbCr" and _left_alone(sample))
    if space != "RGB":
        raise NotDirectError(f"its {kind} pixels are {photometric}, wanted RGB")
    return FrameDecoder(kind=kind)


def _left_alone(codestream: bytes) -> bool:
    """Whether a decoder gives the components of a JPEG 2000 codestream as they are stored.

    It undoes the component transform where there was one, and takes components of unequal size for YCbCr.
    ISO/IEC 15444-1, annex A.5 (SIZ) and A.6 (COD).
    """
    try:
        (count,) = struct.unpack_from(">H", codestream, _COMPONENTS_AT)
        steps = codestream[_COMPONENTS_AT + 2 : _COMPONENTS_AT + 2 + 3 * count]
        at = len(_CODESTREAM) - 2
        (marker, length) = struct.unpack_from(">HH", codestream, at)
        while marker not in (_CODING_STYLE, _FIRST_TILE):
            at += 2 + length
            (marker, length) = struct.unpack_from(">HH", codestream, at)
        transformed = codestream[at + 8]
    except (struct.error, IndexError):
        marker = 0
    if marker != _CODING_STYLE or not codestream.startswith(_CODESTREAM):
        raise NotDirectError("its frames are no JPEG 2000 codestreams")
    subsampled = len(set(steps[1::3])) > 1 or len(set(steps[2::3])) > 1
    return not transformed and not subsampled
