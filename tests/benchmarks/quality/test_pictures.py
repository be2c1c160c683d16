from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.quality.features import features
from benchmarks.quality.pictures import load, picture_files, read
from dipgo.errors import DipgoError

GREY = np.tile(np.arange(0, 256, 4, dtype=np.uint8), (64, 1))


def seen(path: Path) -> np.ndarray:
    return np.asarray(read(path))


def square(hidden: tuple[int, int, int]) -> Image.Image:
    """A red square amid transparent pixels of another colour."""
    pixels = np.zeros((64, 64, 4), np.uint8)
    pixels[..., :3] = hidden
    pixels[16:48, 16:48] = (255, 0, 0, 255)
    return Image.fromarray(pixels)


@pytest.mark.parametrize(
    ("name", "dtype"), [("grey.png", np.uint16), ("grey.tif", np.uint16), ("grey.tif", ">u2"), ("grey.pgm", np.uint16)]
)
def test_greys_of_16_bits_look_like_those_of_8(tmp_path, name, dtype):
    Image.fromarray((GREY.astype(np.uint16) * 257).astype(dtype)).save(tmp_path / name)
    np.testing.assert_array_equal(seen(tmp_path / name), np.stack([GREY] * 3, axis=-1))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_parts_lie_on_white_whatever_colour_they_hide(tmp_path, mode):
    paths = [tmp_path / name for name in ("black.png", "green.png", "blue.png")]
    for path, hidden in zip(paths, ((0, 0, 0), (0, 255, 0), (0, 0, 255)), strict=True):
        if mode == "P":  # a palette with one transparent entry
            palette = square(hidden).convert("RGB").quantize(4, dither=Image.Dither.NONE)
            palette.save(path, transparency=palette.getpixel((0, 0)))
        else:
            square(hidden).convert(mode).save(path)
    first, *others = map(seen, paths)
    assert (first[0, 0] == 255).all() and not (first[32, 32] == 255).all()
    for pixels in others:
        np.testing.assert_array_equal(pixels, first)
    found = features(paths, progress=False)
    np.testing.assert_allclose(found[1:], found[[0, 0]], atol=1e-4)


def test_half_transparent_pixels_are_mixed_with_white(tmp_path):
    for mode, value, expected in (("RGBA", (200, 0, 0, 128), (227, 127, 127)), ("LA", (0, 128), (127, 127, 127))):
        Image.new(mode, (16, 16), value).save(tmp_path / "half.png")
        np.testing.assert_allclose(seen(tmp_path / "half.png")[3, 3], expected, atol=1)


@pytest.mark.parametrize(("mode", "key"), [("L", 0), ("RGB", (0, 0, 0)), ("I;16", 0), ("1", 0)])
def test_a_colour_that_stands_for_transparency_is_white(tmp_path, mode, key):
    picture = Image.fromarray(GREY.astype(np.uint16) * 257) if mode == "I;16" else Image.fromarray(GREY).convert(mode)
    picture.save(tmp_path / "key.png", transparency=key)
    pixels = seen(tmp_path / "key.png")
    assert (pixels[:, 0] == 255).all() and (pixels[:, 32] < 255).all() == (mode != "1")


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr"])
def test_every_other_kind_of_pixels_is_converted(tmp_path, mode):
    expected = np.asarray(Image.fromarray(GREY).convert(mode).convert("RGB"))
    Image.fromarray(GREY).convert(mode).save(tmp_path / "a.tif")
    np.testing.assert_allclose(seen(tmp_path / "a.tif"), expected, atol=2)


@pytest.mark.parametrize("mode", ["F", "I", "LAB"])
def test_pixels_of_unknown_range_or_colours_are_refused_by_name(tmp_path, mode):
    Image.new(mode, (16, 16)).save(tmp_path / "odd.tif")
    with pytest.raises(DipgoError, match=f"odd.tif has pixels of the kind '{mode}'.*save it as RGB"):
        read(tmp_path / "odd.tif")


def test_the_cameras_orientation_is_followed(tmp_path):
    picture, exif = Image.fromarray(np.stack([GREY[:32]] * 3, axis=-1)), Image.Exif()
    exif[0x0112] = 6  # a quarter turn clockwise
    for name in ("a.png", "a.jpg", "a.webp"):
        picture.save(tmp_path / name, exif=exif)
        assert read(tmp_path / name).size == (32, 64)
        assert seen(tmp_path / name)[0].mean() < 10 < seen(tmp_path / name)[-1].mean()


@pytest.mark.parametrize("name", ["a.gif", "a.tif", "a.png", "a.webp"])
def test_several_pictures_in_one_file_are_refused(tmp_path, name):
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue", "green")]
    frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
    with pytest.raises(DipgoError, match=f"{name} holds 3 pictures"):
        read(tmp_path / name)


@pytest.mark.parametrize("size", [(20000, 20000), (10000, 10000)])
def test_a_picture_that_is_too_large_is_one_line(tmp_path, size):
    Image.new("1", size).save(tmp_path / "large.png")
    with pytest.raises(DipgoError, match="large.png is too large; at most 89 megapixels") as caught:
        read(tmp_path / "large.png")
    assert len(str(caught.value).splitlines()) == 1


def test_an_unreadable_picture_is_named(tmp_path):
    Image.effect_noise((64, 64), 50).save(tmp_path / "whole.png")
    whole = (tmp_path / "whole.png").read_bytes()
    broken = {"cut.png": whole[:200], "text.png": b"no picture", "empty.png": b"", "torn.png": whole[:20] + whole[60:]}
    for name, content in broken.items():
        (tmp_path / name).write_bytes(content)
    for name in (*broken, "missing.png"):
        with pytest.raises(DipgoError, match=f"cannot read picture .*{name}") as caught:
            read(tmp_path / name)
        assert len(str(caught.value).splitlines()) == 1


def test_pictures_are_found_by_their_endings_in_any_case(tmp_path):
    endings = "png PNG jpg JPG Jpg jpeg JPEG tif TIF webp WEBP bmp BMP gif jfif".split()
    (tmp_path / "below").mkdir()
    for number, ending in enumerate(endings):
        place = tmp_path / ("below" if number % 2 else "") / f"{number:02d}.{ending}"
        Image.new("RGB", (64, 64)).save(place, format={"jfif": "JPEG"}.get(ending))
    found = picture_files(tmp_path)
    assert len(found) == len(endings) and found == sorted(found)
    assert {Path(path).suffix[1:] for path in found} == set(endings)


def test_no_file_of_a_folder_is_passed_over_in_silence(tmp_path, caplog):
    with pytest.raises(DipgoError, match="no folder of pictures at .*nowhere"):
        picture_files(tmp_path / "nowhere")
    with pytest.raises(DipgoError, match="holds no picture"):
        picture_files(tmp_path)
    for name in ("a.png", "b.PNG"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    with caplog.at_level(logging.WARNING):
        picture_files(tmp_path)
        assert not caplog.messages
        for name in ("notes.txt", "no_ending", "c.npy", ".hidden"):
            (tmp_path / name).touch()
        assert len(picture_files(tmp_path)) == 2
        assert all(name in caplog.messages[0] for name in ("notes.txt", "no_ending", "c.npy", ".hidden"))
        for number in range(9):
            (tmp_path / f"{number}.json").touch()
        picture_files(tmp_path)
    assert caplog.messages[1].endswith("and 8 more")


def test_load_returns_what_was_saved_and_refuses_another_size(tmp_path):
    images = torch.randint(0, 256, (3, 3, 16, 24), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    paths = [tmp_path / f"{index}.png" for index in range(3)]
    for path, image in zip(paths, images, strict=True):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(path)
    assert torch.equal(load(paths), images)
    Image.new("RGB", (5, 7)).save(tmp_path / "small.png")
    with pytest.raises(DipgoError, match="small.png is 5 x 7, but .*0.png is 24 x 16"):
        load([*paths, tmp_path / "small.png"])
    with pytest.raises(DipgoError, match="no pictures given"):
        load([])
