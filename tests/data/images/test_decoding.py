"""Files of 8 bits, one of each kind that cameras and exports make, and what is no image."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from dynammo_core.data.images import refusal
from dynammo_core.data.images.decoding import decode_image
from dynammo_core.data.images.pictures import over_black
from dynammo_core.data.images.reading import Reading
from dynammo_core.support.errors import DataError

ORIENTATION = 0x0112
# What a viewer shows of the stored rows [[1, 2, 3], [4, 5, 6]] by EXIF's definition: which corner the first pixel is.
UPRIGHT = {
    1: [[1, 2, 3], [4, 5, 6]],
    2: [[3, 2, 1], [6, 5, 4]],
    3: [[6, 5, 4], [3, 2, 1]],
    4: [[4, 5, 6], [1, 2, 3]],
    5: [[1, 4], [2, 5], [3, 6]],
    6: [[4, 1], [5, 2], [6, 3]],
    7: [[6, 3], [5, 2], [4, 1]],
    8: [[3, 6], [2, 5], [1, 4]],
}


def refused(path: Path, reading: Reading | None = None) -> str:
    with pytest.raises(DataError) as caught:
        decode_image(path, reading or Reading())
    message = str(caught.value)
    assert message.startswith(f"the image {path} ") and "\n" not in message
    return message


@pytest.mark.parametrize(
    ("mode", "shape"),
    [("1", (5, 7)), ("L", (5, 7)), ("LA", (5, 7)), ("RGB", (5, 7, 3)), ("RGBA", (5, 7, 3)), ("P", (5, 7, 3))],
)
def test_grey_stays_grey_and_the_rest_becomes_rgb(tmp_path: Path, mode: str, shape: tuple[int, ...]) -> None:
    path = tmp_path / "image.png"
    Image.new("L", (7, 5), 255).convert(mode).save(path)
    image = decode_image(path)
    assert image.dtype == np.uint8
    assert image.shape == shape
    assert (image == 255).all()


@pytest.mark.parametrize("content", [b"", b"no image at all", b"\x89PNG\r\n\x1a\n" + bytes(40), b"II*\0", b"P5"])
def test_what_is_no_image_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(content)
    assert "cannot be read" in refused(path)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    assert "No such file" in refused(tmp_path / "gone.png")


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("suffix", [".png", ".tif", ".webp"])
def test_the_orientation_is_applied(tmp_path: Path, suffix: str, orientation: int) -> None:
    path = tmp_path / f"photo{suffix}"
    stored = np.array([[1, 2, 3], [4, 5, 6]], dtype=np.uint8) * 40
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    lossless = {"lossless": True} if suffix == ".webp" else {}
    Image.fromarray(stored).save(path, exif=exif, **lossless)
    image = decode_image(path)
    grey = image if image.ndim == 2 else image[..., 0]  # WebP knows no grey
    assert grey.tolist() == (np.array(UPRIGHT[orientation]) * 40).tolist()


def test_a_rotated_photograph_is_read_as_it_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "phone.jpg"
    stored = np.zeros((16, 32), dtype=np.uint8)
    stored[:, 16:] = 200  # the right half is bright: turned by 90 degrees clockwise it lies below
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    Image.fromarray(stored).save(path, quality=95, exif=exif)
    image = decode_image(path)
    assert image.shape == (32, 16)
    assert image[:14].max() < 20 and image[18:].min() > 180


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
@pytest.mark.parametrize("suffix", [".png", ".tif", ".webp"])
def test_what_is_transparent_lies_over_black(tmp_path: Path, mode: str, suffix: str) -> None:
    if (mode, suffix) == ("LA", ".webp"):
        pytest.skip("WebP knows no grey")
    path = tmp_path / f"cut{suffix}"
    colours, alphas = np.array([255, 200, 100, 77]), np.array([0, 255, 128, 51])
    pixels = np.stack([colours] * (len(mode) - 1) + [alphas], axis=-1).astype(np.uint8)[None]
    Image.fromarray(pixels, mode=mode).save(path, **({"lossless": True, "exact": True} if suffix == ".webp" else {}))
    # 100 * 128 / 255 = 50.2, 77 * 51 / 255 = 15.4
    image = decode_image(path)
    assert image.shape == ((1, 4) if mode == "LA" else (1, 4, 3))
    assert (image.reshape(4, -1) == np.array([[0], [200], [50], [15]])).all()


def test_a_transparent_colour_of_a_palette_is_black(tmp_path: Path) -> None:
    path = tmp_path / "diagram.png"
    image = Image.fromarray(np.array([[0, 1]], dtype=np.uint8)).convert("P")
    image.putpalette([250, 10, 20, 30, 40, 50])
    image.save(path, transparency=0)
    assert decode_image(path).tolist() == [[[0, 0, 0], [30, 40, 50]]]


def test_a_transparent_grey_value_is_black(tmp_path: Path) -> None:
    path = tmp_path / "grey.png"
    Image.fromarray(np.array([[9, 200]], dtype=np.uint8)).save(path, transparency=200)
    assert decode_image(path).tolist() == [[9, 0]]


@pytest.mark.parametrize("suffix", [".gif", ".tif", ".webp", ".png"])
def test_several_frames_are_refused_unless_one_is_chosen(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"film{suffix}"
    frames = [Image.new("L", (4, 4), value) for value in (10, 120, 240)]
    frames[0].save(path, save_all=True, append_images=frames[1:], **({"lossless": True} if suffix == ".webp" else {}))
    message = refused(path)
    assert "has 3 frames or pages" in message and "data.frame" in message
    for frame, value in enumerate((10, 120, 240), start=1):
        assert (decode_image(path, Reading(frame=frame)) == value).all()
    assert "asks for number 4" in refused(path, Reading(frame=4))


def test_where_there_is_one_frame_nothing_is_chosen(tmp_path: Path) -> None:
    path = tmp_path / "one.png"
    Image.new("L", (4, 4), 9).save(path)
    assert (decode_image(path, Reading(frame=3)) == 9).all()


def test_a_phones_photograph_with_a_preview_is_the_photograph(tmp_path: Path) -> None:
    path = tmp_path / "phone.jpg"
    Image.new("L", (64, 48), 200).save(path, "MPO", save_all=True, append_images=[Image.new("L", (8, 6), 10)])
    assert Image.open(path).format == "MPO"
    image = decode_image(path)
    assert image.shape == (48, 64) and (image == 200).all()


def test_too_many_pixels_are_refused_before_they_are_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "bomb.png"
    Image.new("1", (20_000, 9_000)).save(path)
    assert "has 20000 x 9000 pixels" in refused(path) or "more pixels" in refused(path)
    monkeypatch.setattr(refusal, "MOST_PIXELS", 11)
    Image.new("L", (4, 3)).save(path)
    assert "has 4 x 3 pixels" in refused(path)


def test_other_formats_are_not_even_tried(tmp_path: Path) -> None:
    path = tmp_path / "page.png"
    Image.new("L", (4, 4)).save(path, "EPS")  # Pillow would start Ghostscript
    assert "no format that is read here" in refused(path)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif", ".webp", ".gif", ".bmp", ".pgm", ".jp2"])
def test_one_pixel_is_an_image(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"dot{suffix}"
    Image.new("L", (1, 1), 255).save(path)
    assert decode_image(path).reshape(-1).tolist() in ([255], [255, 255, 255])


def test_printers_colours_become_rgb(tmp_path: Path) -> None:
    path = tmp_path / "print.jpg"  # Pillow writes such JPEGs as Adobe does, with values turned over
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(path, quality=95)
    assert np.abs(decode_image(path)[4, 4].astype(int) - [255, 0, 0]).max() < 8


@pytest.mark.parametrize("inverted", [False, True])
@pytest.mark.parametrize("mode", ["1", "L"])
def test_where_white_is_zero_zero_is_white(tmp_path: Path, mode: str, inverted: bool) -> None:
    path = tmp_path / "fax.tif"
    values = np.array([[0, 255, 255, 0]], dtype=np.uint8)
    stored = values == 255 if mode == "1" else values
    tifffile.imwrite(path, stored, photometric="miniswhite" if inverted else "minisblack", metadata=None)
    assert decode_image(path).tolist() == (255 - values if inverted else values).tolist()


def test_a_palette_with_opacity_lies_over_black(tmp_path: Path) -> None:
    path = tmp_path / "icon.webp"
    image = Image.new("PA", (2, 1))
    image.putpalette([200, 100, 50])
    image.putalpha(Image.fromarray(np.array([[255, 0]], dtype=np.uint8)))
    image.convert("RGBA").save(path, lossless=True, exact=True)
    assert decode_image(path).tolist() == [[[200, 100, 50], [0, 0, 0]]]
    assert over_black(image).tolist() == [[[200, 100, 50], [0, 0, 0]]]


def test_premultiplied_colours_lie_over_black_already(tmp_path: Path) -> None:
    path = tmp_path / "layer.tif"
    values = np.array([[[90, 60, 30, 128], [0, 0, 0, 0]]], dtype=np.uint8)
    tifffile.imwrite(path, values, photometric="rgb", extrasamples=["assocalpha"], metadata=None)
    assert decode_image(path).tolist() == [[[90, 60, 30], [0, 0, 0]]]


def test_jpeg_inside_tiff_is_read(tmp_path: Path) -> None:
    path = tmp_path / "slide.tif"
    Image.new("RGB", (32, 32), (180, 40, 90)).save(path, compression="jpeg", quality=95)
    assert np.abs(decode_image(path)[16, 16].astype(int) - [180, 40, 90]).max() < 8


@pytest.mark.parametrize("mode", ["1", "L", "RGB", "I;16"])
def test_a_second_image_in_a_pnm_file_is_not_passed_over(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "film.pnm"
    Image.new("RGB" if mode == "RGB" else "L", (11, 5), 90).convert(mode).save(path, "PPM")
    one = path.read_bytes()
    reading = Reading(window=(128, 256))
    path.write_bytes(one + b"\n")
    assert decode_image(path, reading).shape[:2] == (5, 11)
    path.write_bytes(one + one)
    assert "several images" in refused(path, reading)
