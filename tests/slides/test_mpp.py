from __future__ import annotations

import pytest

from wsimil.errors import SlideError
from wsimil.slides.mpp import metadata_mpp, resolve_mpp

SPACING = "dicom.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing"
SIZE0 = {"openslide.level[0].width": "1000", "openslide.level[0].height": "2000"}
OME = (
    '<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06">'
    '<Image><Pixels PhysicalSizeX="9" PhysicalSizeY="9" SizeX="100" SizeY="200"/></Image>'
    '<Image><Pixels PhysicalSizeX="{x}" PhysicalSizeY="{x}" {units} SizeX="1000" SizeY="2000"/></Image></OME>'
)
CHAIN = [
    ("openslide.mpp-x", {"openslide.mpp-x": "0.25", "openslide.mpp-y": "0.25"}),
    (
        "hamamatsu.PhysicalWidth",
        {
            "hamamatsu.PhysicalWidth": "250000", "hamamatsu.PhysicalHeight": "500000", **SIZE0,
        },
    ),
    ("philips.DICOM_PIXEL_SPACING", {"philips.DICOM_PIXEL_SPACING": '"0.00025" "0.000251"'}),
    ("aperio.MPP", {"aperio.MPP": "0.2500"}),
    (SPACING, {f"{SPACING}[0]": "0.00025", f"{SPACING}[1]": "0.00025"}),
    ("dicom.PixelSpacing", {"dicom.PixelSpacing[0]": "0.00025", "dicom.PixelSpacing[1]": "0.00025"}),
    ("tiff.XResolution", {"tiff.XResolution": "40000", "tiff.YResolution": "40000", "tiff.ResolutionUnit": "centimeter"}),
    ("OME PhysicalSizeX", {"tiff.ImageDescription": OME.format(x="0.25", units=""), **SIZE0}),
]  # fmt: skip


@pytest.mark.parametrize(("prop", "properties"), CHAIN, ids=[prop for prop, _ in CHAIN])
def test_each_source_of_the_chain_is_understood(prop: str, properties: dict[str, str]) -> None:
    value = metadata_mpp(properties)
    assert value is not None
    assert value.prop == prop
    assert value.mean == pytest.approx(0.25, rel=0.003)


@pytest.mark.parametrize("rank", range(len(CHAIN) - 1))
def test_the_earlier_source_wins(rank: int) -> None:
    properties = {key: text for _, later in reversed(CHAIN[rank:]) for key, text in later.items()}
    value = metadata_mpp(properties)
    assert value is not None
    assert value.prop == CHAIN[rank][0]


def test_row_spacing_comes_first_in_dicom_and_philips() -> None:
    philips = metadata_mpp({"philips.DICOM_PIXEL_SPACING": '"0.000252" "0.00025"'})
    dicom = metadata_mpp({f"{SPACING}[0]": "0.000252", f"{SPACING}[1]": "0.00025"})
    assert philips is not None
    assert dicom is not None
    assert (philips.x, philips.y) == pytest.approx((0.25, 0.252))
    assert (dicom.x, dicom.y) == pytest.approx((0.25, 0.252))


@pytest.mark.parametrize(
    ("units", "size", "mpp"),
    [
        ('PhysicalSizeXUnit="pm" PhysicalSizeYUnit="pm"', "250000", 0.25),
        ('PhysicalSizeXUnit="Å" PhysicalSizeYUnit="Å"', "2500", 0.25),
        ('PhysicalSizeXUnit="nm" PhysicalSizeYUnit="nm"', "250", 0.25),
        ('PhysicalSizeXUnit="mm" PhysicalSizeYUnit="mm"', "0.0005", 0.5),
        ('PhysicalSizeXUnit="cm" PhysicalSizeYUnit="cm"', "25e-6", 0.25),
        ('PhysicalSizeXUnit="dm" PhysicalSizeYUnit="dm"', "25e-7", 0.25),
        ('PhysicalSizeXUnit="m" PhysicalSizeYUnit="m"', "25e-8", 0.25),
        ('PhysicalSizeXUnit="in" PhysicalSizeYUnit="in"', "1e-5", 0.254),
        ('PhysicalSizeXUnit="pt" PhysicalSizeYUnit="pt"', "72e-5", 0.254),
        ('PhysicalSizeXUnit="µm" PhysicalSizeYUnit="\u03bcm"', "0.25", 0.25),
        ('PhysicalSizeXUnit="pixel" PhysicalSizeYUnit="pixel"', "0.25", None),
    ],
)
def test_units_of_ome_xml_are_converted_and_unknown_ones_are_not_guessed(
    units: str, size: str, mpp: float | None
) -> None:
    value = metadata_mpp(SIZE0 | {"tiff.ImageDescription": OME.format(x=size, units=units)})
    assert (None if value is None else value.mean) == (None if mpp is None else pytest.approx(mpp))


def test_xml_with_entities_is_refused_before_it_can_grow() -> None:
    text = OME.format(x="&b;", units="")
    bomb = text.replace("<OME", '<!DOCTYPE OME [<!ENTITY a "1"><!ENTITY b "&a;&a;">]><OME')
    assert metadata_mpp(SIZE0 | {"tiff.ImageDescription": bomb}) is None
    assert metadata_mpp(SIZE0 | {"tiff.ImageDescription": "<OME><Pixels"}) is None
    cut_short = OME.format(x="0.25", units="").removesuffix("</OME>")
    assert metadata_mpp(SIZE0 | {"tiff.ImageDescription": cut_short}) is None


def test_the_mpp_of_an_ome_xml_is_that_of_the_image_of_level_0() -> None:
    text = OME.format(x="0.25", units="")
    assert metadata_mpp({"tiff.ImageDescription": text}) is None
    assert metadata_mpp(SIZE0 | {"tiff.ImageDescription": text.replace("1000", "999")}) is None
    # Two images of that size tell nothing where they do not say the same.
    both = text.replace(' SizeX="100" SizeY="200"', ' SizeX="1000" SizeY="2000"')
    assert metadata_mpp(SIZE0 | {"tiff.ImageDescription": both}) is None
    agreed = metadata_mpp(SIZE0 | {"tiff.ImageDescription": both.replace('"9"', '"0.25"')})
    assert agreed is not None
    assert agreed.mean == 0.25


@pytest.mark.parametrize("text", ["0", "-0.25", "nan", "inf", "", "none", "0.25 um"])
def test_what_is_not_a_positive_number_is_not_an_mpp(text: str) -> None:
    assert metadata_mpp({"openslide.mpp-x": text, "openslide.mpp-y": text}) is None


def test_a_decimal_comma_is_read() -> None:
    value = metadata_mpp({"aperio.MPP": "0,499"})
    assert value is not None
    assert value.mean == 0.499


def test_magnification_is_never_turned_into_mpp() -> None:
    with pytest.raises(
        SlideError, match=r"slide 'TCGA-05': no mpp in metadata; give it in the manifest's mpp column or with "
    ):
        resolve_mpp({"openslide.objective-power": "40", "aperio.AppMag": "40"}, slide_id="TCGA-05", override=None)


def test_a_plausible_value_further_down_beats_a_placeholder() -> None:
    placeholder = {"openslide.mpp-x": "352.778", "openslide.mpp-y": "352.778"}
    value = metadata_mpp(placeholder | SIZE0 | {"tiff.ImageDescription": OME.format(x="0.5", units="")})
    assert value is not None
    assert value.prop == "OME PhysicalSizeX"
    for dpi, um in ((72, "352.778"), (96, "264.583"), (150, "169.333"), (300, "84.667")):
        alone = metadata_mpp({"openslide.mpp-x": um, "openslide.mpp-y": um})
        assert alone is not None
        assert alone.detail == f"openslide.mpp-x: {dpi} dpi, likely a placeholder of an image program"


def test_pixels_that_are_not_square_are_refused_and_nearly_square_ones_averaged() -> None:
    near = resolve_mpp({"openslide.mpp-x": "0.25", "openslide.mpp-y": "0.252"}, slide_id="s", override=None)
    assert near.mpp == pytest.approx(0.251)
    with pytest.raises(
        SlideError, match=r"slide 's': pixels are not square: 0.25 by 0.253 µm .* 1.2% apart, wanted within 1%"
    ):
        resolve_mpp({"openslide.mpp-x": "0.25", "openslide.mpp-y": "0.253"}, slide_id="s", override=None)


def test_an_override_wins_and_its_disagreement_with_the_metadata_stays_visible() -> None:
    metadata = {"openslide.mpp-x": "0.25", "openslide.mpp-y": "0.25"}
    far = resolve_mpp(metadata, slide_id="s", override=0.5)
    assert (far.mpp, far.source) == (0.5, "override")
    assert far.detail == "override; metadata disagree: 0.25 (openslide.mpp-x)"
    assert resolve_mpp(metadata, slide_id="s", override=0.2501).detail == "override; metadata agree within 1 %"
    assert resolve_mpp({}, slide_id="s", override=0.25).detail == "override; no mpp in metadata"


@pytest.mark.parametrize("override", [0.0, -0.5, float("nan"), float("inf")])
def test_an_override_that_is_no_positive_number_is_refused(override: float) -> None:
    with pytest.raises(SlideError, match="wanted a positive number"):
        resolve_mpp({}, slide_id="s", override=override)
