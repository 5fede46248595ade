"""Files, URLs and tensors: either handled as a person expects or refused in one sentence."""

import http.server
import io
import os
import re
import struct
import subprocess
import sys
import threading
import time
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from ex4lib import images


@pytest.fixture
def levels():
    """Random 8-bit RGB levels, taller than wide."""
    return np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)


def as_levels(image):
    """The 8-bit levels ``(H, W, 3)`` of an image tensor, which must hold exact ones."""
    scaled = image[0].double().permute(1, 2, 0).numpy() * 255
    np.testing.assert_allclose(scaled, np.round(scaled), atol=1e-4)
    return np.round(scaled).astype(np.uint8)


def png_chunk(kind, content):
    checksum = zlib.crc32(kind + content)
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)


def png_header(width, height):
    """A PNG that claims a size and holds no pixels."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = png_chunk(b"IDAT", zlib.compress(b"\0" * 64))
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + pixels + png_chunk(b"IEND", b"")


# --- what ships ---------------------------------------------------------------------------------------------------


def test_every_shipped_picture_loads():
    assert {"chelsea", "astronaut", "coffee", "hokusai-great-wave"} <= set(images.names())
    for name in images.names():
        image = images.load(name, 48)
        assert image.shape[:2] == (1, 3) and max(image.shape[2:]) == 48
        assert image.dtype == torch.float32 and image.is_contiguous()
        assert image.min() >= 0 and image.max() <= 1


def test_a_misspelt_name_lists_near_matches():
    with pytest.raises(FileNotFoundError, match=r"'chelsae'.*did you mean chelsea"):
        images.load("chelsae")


# --- formats ------------------------------------------------------------------------------------------------------


def test_rgb_png_is_exact(tmp_path, levels):
    Image.fromarray(levels).save(tmp_path / "a.png")
    for source in (tmp_path / "a.png", str(tmp_path / "a.png"), Image.fromarray(levels)):
        image = images.load(source)
        assert image.dtype == torch.float32 and image.shape == (1, 3, 9, 7)
        np.testing.assert_array_equal(as_levels(image), levels)


def test_one_pixel(tmp_path):
    Image.new("RGB", (1, 1), (255, 0, 51)).save(tmp_path / "one.png")
    assert images.load(tmp_path / "one.png").flatten().tolist() == pytest.approx([1, 0, 0.2])


def test_cmyk_jpeg(tmp_path):
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tmp_path / "ink.jpg", quality=100)
    red, green, blue = images.load(tmp_path / "ink.jpg")[0].mean((1, 2)).tolist()
    assert red > 0.95 and green < 0.05 and blue < 0.05


def test_16_bit_grey_png_keeps_its_precision(tmp_path):
    deep = np.array([[0, 1, 255, 256], [12345, 40000, 65534, 65535]], dtype=np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    with Image.open(tmp_path / "deep.png") as written:
        assert written.mode.startswith("I")
    image = images.load(tmp_path / "deep.png")
    for channel in image[0]:
        np.testing.assert_allclose(channel.numpy(), deep / 65535, atol=1e-7)


def test_floating_point_grey_tiff(tmp_path):
    values = np.array([[0.0, 0.25], [0.7, 1.0]], dtype=np.float32)
    Image.fromarray(values).save(tmp_path / "float.tif")
    np.testing.assert_array_equal(images.load(tmp_path / "float.tif")[0, 1].numpy(), values)
    Image.fromarray(values * 300).save(tmp_path / "range.tif")
    with pytest.raises(ValueError, match=r"floats in \[0, 1\], got 0 to 300"):
        images.load(tmp_path / "range.tif")


def test_1_bit(tmp_path):
    bits = np.array([[True, False], [False, True]])
    Image.fromarray(bits).save(tmp_path / "bits.png")
    for channel in images.load(tmp_path / "bits.png")[0]:
        np.testing.assert_array_equal(channel.numpy(), bits)


def test_palette_with_transparency_lies_on_white(tmp_path):
    picture = Image.new("P", (2, 1))
    picture.putpalette([255, 0, 0, 0, 0, 255])
    picture.putpixel((1, 0), 1)
    picture.save(tmp_path / "palette.png", transparency=1)
    assert as_levels(images.load(tmp_path / "palette.png")).tolist() == [[[255, 0, 0], [255, 255, 255]]]


def test_palette_without_transparency(tmp_path):
    picture = Image.new("P", (1, 1))
    picture.putpalette([10, 20, 30])
    picture.save(tmp_path / "palette.png")
    assert as_levels(images.load(tmp_path / "palette.png")).tolist() == [[[10, 20, 30]]]


def test_alpha_lies_on_white(tmp_path):
    rgba = np.array([[[200, 100, 0, 255], [200, 100, 0, 0], [200, 100, 0, 51]]], dtype=np.uint8)
    Image.fromarray(rgba).save(tmp_path / "rgba.png")
    got = as_levels(images.load(tmp_path / "rgba.png"))[0].astype(int)
    assert got[0].tolist() == [200, 100, 0]
    assert got[1].tolist() == [255, 255, 255]
    assert np.abs(got[2] - (0.2 * np.array([200, 100, 0]) + 0.8 * 255)).max() <= 1


def test_grey_with_alpha_lies_on_white(tmp_path):
    Image.fromarray(np.array([[[90, 255], [90, 0]]], dtype=np.uint8), "LA").save(tmp_path / "la.png")
    assert as_levels(images.load(tmp_path / "la.png")).tolist() == [[[90] * 3, [255] * 3]]


ROTATIONS = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a, 1),
}


@pytest.mark.parametrize("orientation", ROTATIONS)
def test_exif_orientation(tmp_path, levels, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(levels).save(tmp_path / "turned.png", exif=exif)
    np.testing.assert_array_equal(as_levels(images.load(tmp_path / "turned.png")), ROTATIONS[orientation](levels))


def test_exif_orientation_of_a_jpeg(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (24, 8)).save(tmp_path / "turned.jpg", exif=exif)
    assert images.load(tmp_path / "turned.jpg").shape == (1, 3, 24, 8)


def test_animation_gives_its_first_frame(tmp_path):
    frames = [Image.new("RGB", (4, 4), colour) for colour in ((255, 0, 0), (0, 255, 0))]
    frames[0].save(tmp_path / "film.gif", save_all=True, append_images=frames[1:])
    assert as_levels(images.load(tmp_path / "film.gif")).reshape(-1, 3).tolist() == [[255, 0, 0]] * 16


def test_colour_profiles_are_converted(tmp_path):
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    # A profile whose red and green primaries are exchanged: exchange the names of the two entries of its tag table.
    exchanged = srgb.replace(b"rXYZ", b"----", 1).replace(b"gXYZ", b"rXYZ", 1).replace(b"----", b"gXYZ", 1)
    picture = Image.new("RGB", (2, 2), (255, 0, 0))
    picture.save(tmp_path / "exchanged.png", icc_profile=exchanged)
    picture.save(tmp_path / "same.png", icc_profile=srgb)
    picture.save(tmp_path / "damaged.png", icc_profile=b"no profile at all")
    for name, expected in (("exchanged", [0, 255, 0]), ("same", [255, 0, 0]), ("damaged", [255, 0, 0])):
        got = as_levels(images.load(tmp_path / f"{name}.png"))[0, 0].astype(int)
        assert np.abs(got - expected).max() <= 2, name


def test_equal_pictures_are_equal_files_at_any_time(tmp_path):
    """A profile tells when it was made, but not here, or every run would write other files."""
    save = "from ex4lib import images; import sys, torch; images.save(torch.full((1, 3, 4, 4), 0.5), sys.argv[1])"
    for name in ("first.png", "second.png"):
        subprocess.run([sys.executable, "-c", save, str(tmp_path / name)], check=True)
        time.sleep(1.1)  # the time in a profile is in seconds
    assert (tmp_path / "first.png").read_bytes() == (tmp_path / "second.png").read_bytes()


# --- what is refused ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["jpg", "png"])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.9])
def test_truncated_files(tmp_path, ending, share):
    noise = np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / f"whole.{ending}")
    content = (tmp_path / f"whole.{ending}").read_bytes()
    (tmp_path / f"cut.{ending}").write_bytes(content[: int(share * len(content))])
    images.load(tmp_path / f"whole.{ending}")
    with pytest.raises(ValueError, match=rf"cut\.{ending}' cannot be read as a picture"):
        images.load(tmp_path / f"cut.{ending}")


@pytest.mark.parametrize("side", [11_000, 60_000])
def test_huge_pictures_are_refused_by_their_header(tmp_path, side):
    (tmp_path / "huge.png").write_bytes(png_header(side, side))
    with pytest.raises(ValueError, match=r"pixels"):
        images.load(tmp_path / "huge.png")


@pytest.mark.parametrize("content", [b"", b"just some text\n"])
def test_a_text_file_called_png(tmp_path, content):
    (tmp_path / "text.png").write_bytes(content)
    with pytest.raises(ValueError, match=r"text\.png' cannot be read as a picture"):
        images.load(tmp_path / "text.png")


@pytest.mark.parametrize("name", ["missing.png", "."])
def test_missing_file_and_folder(tmp_path, name):
    with pytest.raises(FileNotFoundError, match="there is no file"):
        images.load(tmp_path / name)


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (torch.full((1, 3, 2, 2), float("nan")), "finite"),
        (torch.full((1, 3, 2, 2), float("inf")), "finite"),
        (torch.full((1, 3, 2, 2), 1.5), r"\[0, 1\].*1\.5"),
        (torch.full((1, 3, 2, 2), -0.5), r"\[0, 1\].*-0\.5"),
        (torch.zeros(1, 3, 2, 2, dtype=torch.uint8), "floating point.*uint8"),
        (torch.zeros(3, 2, 2), r"shape \(B, 3, H, W\)"),
        (torch.zeros(1, 1, 2, 2), r"shape \(B, 3, H, W\)"),
        (torch.zeros(1, 3, 0, 2), r"shape \(B, 3, H, W\)"),
    ],
)
def test_bad_tensors(tensor, message):
    with pytest.raises(ValueError, match=message):
        images.load(tensor)


def test_a_single_bad_pixel_is_found():
    image = torch.rand(1, 3, 8, 8)
    image[0, 1, 3, 4] = float("nan")
    with pytest.raises(ValueError, match="finite"):
        images.check(image, "image")


@pytest.mark.parametrize("value", [3, None, [0.5], b"chelsea", {"a": 1}])
def test_other_types_are_refused(value):
    with pytest.raises(ValueError, match=r"source must be a name, path, URL, PIL picture, array or tensor, got"):
        images.load(value)


# --- arrays and masks ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "convert",
    [
        lambda a: a,
        lambda a: a.astype(np.int64),
        lambda a: a.astype(np.uint16) * 257,
        lambda a: a / 255,
        lambda a: (a / 255).astype(">f4"),
        lambda a: a[None],
        lambda a: a.transpose(2, 0, 1),
        lambda a: a[::-1][::-1],
        lambda a: np.dstack([a, np.full(a.shape[:2], 255, np.uint8)]),
    ],
)
def test_arrays_of_any_kind_are_the_same_picture(levels, convert):
    np.testing.assert_array_equal(as_levels(images.load(convert(levels))), levels)


@pytest.mark.parametrize("shape", [(1, 50, 3), (3, 50, 3), (1, 50, 1), (3, 50, 1), (1, 1, 4), (50, 1, 3), (3, 3, 3)])
def test_the_last_axis_of_an_array_holds_its_channels(shape):
    array = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    array = np.dstack([array[..., :3], np.full(shape[:2], 255, np.uint8)]) if shape[2] == 4 else array
    expected = torch.from_numpy(array[..., :3] / np.float32(255)).permute(2, 0, 1)[None].expand(-1, 3, -1, -1)
    torch.testing.assert_close(images.load(array), expected)
    assert images.mask(array).shape == (1, 1, *shape[:2])


@pytest.mark.parametrize("value", [np.zeros(3), np.zeros((2, 2, 5)), np.array([["a"]]), np.full((2, 2), np.nan)])
def test_bad_arrays(value):
    with pytest.raises(ValueError, match=r"^source must "):
        images.load(value)


def test_half_precision_tensors_are_resized():
    half = torch.rand(1, 3, 8, 8).half()
    assert images.load(half, 4).dtype == torch.float32
    torch.testing.assert_close(images.load(half, 4), images.resize(half.float(), 4))


def test_masks_of_any_kind_are_the_same_mask(tmp_path):
    bits = np.random.default_rng(0).random((6, 5)) > 0.5
    expected = torch.from_numpy(bits).float()[None, None]
    grey = bits.astype(np.uint8) * 255
    Image.fromarray(grey).save(tmp_path / "mask.png")
    Image.fromarray(np.dstack([grey] * 3 + [grey * 0 + 255])).save(tmp_path / "four.png")
    Image.fromarray(np.dstack([grey * 0 + 255] * 3 + [grey])).save(tmp_path / "opacity.png")
    sources = [tmp_path / "mask.png", str(tmp_path / "four.png"), tmp_path / "opacity.png", Image.fromarray(bits)]
    sources += [bits, grey, bits.astype(int), grey.astype(np.float64), bits.astype(np.float16), grey.astype(int) * 257]
    sources += [np.dstack([grey] * 3), torch.from_numpy(bits), torch.from_numpy(grey)[None, None], expected]
    sources += [expected.expand(1, 3, 6, 5), expected.bool(), expected[0], expected.half(), images.load(grey)]
    for source in sources:
        found = images.mask(source)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, expected)
    assert images.mask(grey, grid=(12, 10)).shape == (1, 1, 12, 10)


@pytest.mark.parametrize(
    "value", [-expected for expected in (torch.ones(1, 1, 2, 2), np.ones((2, 2), int))] + [1.5 * np.ones((2, 2)), 7]
)
def test_bad_masks(value):
    with pytest.raises(ValueError, match=r"^mask must "):
        images.mask(value)


# --- URLs ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def server(levels, monkeypatch):
    """A web server on this machine: /ok.png is a picture, /cut.png ends too early, the rest is missing."""
    buffer = io.BytesIO()
    Image.fromarray(levels).save(buffer, "PNG")

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            if self.path not in ("/ok.png", "/cut.png"):
                self.send_error(404)
                return
            self.send_response(200)
            self.send_header("Content-Length", str(len(buffer.getvalue())))
            self.end_headers()
            self.wfile.write(buffer.getvalue()[: None if self.path == "/ok.png" else 50])

        def log_message(self, *_):
            pass

    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http_server:
        thread = threading.Thread(target=http_server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{http_server.server_port}"
        http_server.shutdown()
        thread.join()


def test_url(server, levels):
    np.testing.assert_array_equal(as_levels(images.load(f"{server}/ok.png")), levels)


@pytest.mark.parametrize(("path", "message"), [("missing.png", "404"), ("cut.png", "cannot be fetched")])
def test_url_that_fails(server, path, message):
    with pytest.raises(ValueError, match=rf"{re.escape(server)}/{path}.*{message}"):
        images.load(f"{server}/{path}")


def test_url_that_is_none():
    with pytest.raises(ValueError, match="cannot be fetched"):
        images.load("http://")


# --- saving -------------------------------------------------------------------------------------------------------


def test_save_and_load_again(tmp_path, levels):
    image = images.load(Image.fromarray(levels))
    path = images.save(image, tmp_path / "new folder" / "a.png", metadata={"ex4lib": "größer\n{}"})
    np.testing.assert_array_equal(as_levels(images.load(path)), levels)
    with Image.open(path) as written:
        assert written.text["ex4lib"] == "größer\n{}"
        assert written.info["icc_profile"]
    assert [file.name for file in path.parent.iterdir()] == ["a.png"]


@pytest.mark.parametrize("ending", ["jpg", "webp", "tif", "bmp"])
def test_other_formats(tmp_path, ending):
    image = images.load("chelsea", 64)
    again = images.load(images.save(image, tmp_path / f"a.{ending}"))
    assert (again - image).abs().mean() < 0.02


@pytest.mark.parametrize("ending", ["xyz", "psd", ""])
def test_an_ending_that_cannot_be_written(tmp_path, ending):
    with pytest.raises(ValueError, match="path must end in a picture format"):
        images.save(torch.rand(1, 3, 4, 4), tmp_path / f"a.{ending}")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("bad", [torch.rand(2, 3, 4, 4), torch.full((1, 3, 4, 4), float("nan"))])
def test_a_failed_save_leaves_the_old_file(tmp_path, bad):
    path = images.save(torch.zeros(1, 3, 4, 4), tmp_path / "a.png")
    before = path.read_bytes()
    with pytest.raises(ValueError):
        images.save(bad, path)
    assert path.read_bytes() == before


def test_an_interrupted_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = images.write_bytes(tmp_path / "a.bin", b"old")

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(images.os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        images.write_bytes(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_to_pil_rounds():
    image = torch.tensor([0.0, 0.4 / 255, 0.6 / 255]).view(1, 3, 1, 1)
    assert images.to_pil(image).getpixel((0, 0)) == (0, 0, 1)
    assert images.to_pil(image[0]).getpixel((0, 0)) == (0, 0, 1)


# --- sizes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "size", "expected"),
    [((40, 80), 20, (10, 20)), ((80, 40), 20, (20, 10)), ((10, 20), 40, (20, 40)), ((1, 90), 9, (1, 9))],
)
def test_resize_sets_the_longer_side(shape, size, expected):
    assert images.resize(torch.rand(1, 3, *shape), size).shape[2:] == expected


def test_resize_is_pillow_s_bicubic():
    image = torch.rand(1, 3, 40, 30, generator=torch.Generator().manual_seed(0)) * 0.5 + 0.25
    for height, width in ((13, 9), (60, 71)):
        got = images.resize(image, (height, width))
        for channel in range(3):
            reference = Image.fromarray(image[0, channel].numpy()).resize((width, height), Image.Resampling.BICUBIC)
            np.testing.assert_allclose(got[0, channel].numpy(), np.asarray(reference).clip(0, 1), atol=1e-5)


def test_resize_to_its_own_size_changes_nothing():
    image = torch.rand(1, 3, 12, 8)
    assert images.resize(image, 12) is image


@pytest.mark.parametrize("size", [0, -3, (0, 4), (4, 0)])
def test_resize_to_nothing(size):
    with pytest.raises(ValueError, match="size must be at least 1"):
        images.resize(torch.rand(1, 3, 4, 4), size)


def test_crop_square():
    image = torch.arange(3 * 4 * 7, dtype=torch.float32).view(1, 3, 4, 7) / 84
    np.testing.assert_array_equal(images.crop_square(image).numpy(), image.numpy()[:, :, :, 1:5])
    np.testing.assert_array_equal(images.crop_square(image.mT).numpy(), image.mT.numpy()[:, :, 1:5])


# --- decoders -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("orientation", [1, 5, 6, 7, 8])
@pytest.mark.parametrize("mode", ["L", "P", "RGB", "RGBA", "CMYK", "I;16", "LA", "1"])
def test_uncompressed_tiffs_are_not_scrambled(tmp_path, levels, mode, orientation):
    """Pillow maps such files into memory and turns them wrongly, unless their bytes are read first."""
    if mode == "I;16":
        picture = Image.fromarray(levels[..., 0].astype(np.uint16) * 257)
    else:
        picture = Image.fromarray(levels).convert(mode)
    expected = ROTATIONS[orientation](np.moveaxis(images.from_pil(picture)[0].numpy(), 0, 2))
    picture.save(tmp_path / "a.tif", exif=exif_with(orientation))
    np.testing.assert_allclose(np.moveaxis(images.load(tmp_path / "a.tif")[0].numpy(), 0, 2), expected, atol=1e-6)


def exif_with(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def test_lab_tiff(tmp_path):
    lab = np.array([[[255, 128, 128], [0, 128, 128], [138, 209, 198]]], dtype=np.uint8)  # white, black, red
    lab[..., 1:] ^= 128  # a TIFF holds signed a* and b*
    Image.frombytes("LAB", (3, 1), lab.tobytes()).save(tmp_path / "lab.tif")
    got = as_levels(images.load(tmp_path / "lab.tif"))[0].astype(int)
    assert np.abs(got - [[255, 255, 255], [0, 0, 0], [254, 0, 0]]).max() <= 6
    assert images.alpha(tmp_path / "lab.tif") is None


@pytest.mark.parametrize(
    "content", [b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n{} loop\n", b"%PDF-1.4\n", b"8BPS"]
)
def test_formats_that_are_programs_are_refused(tmp_path, content, monkeypatch):
    monkeypatch.setattr("subprocess.check_call", lambda *_, **__: pytest.fail("a program was started"))
    (tmp_path / "page.png").write_bytes(content)
    with pytest.raises(ValueError, match=r"page\.png' cannot be read as a picture: it is not a raster picture"):
        images.load(tmp_path / "page.png")


def test_heic_names_its_package(tmp_path):
    (tmp_path / "phone.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(64))
    with pytest.raises(ValueError, match="pip install pillow-heif"):
        images.load(tmp_path / "phone.heic")


WRITABLE = ["png", "jpg", "webp", "tif", "bmp", "gif", "avif", "jp2", "tga", "ppm", "ico", "pcx", "sgi", "qoi"]


@pytest.mark.parametrize("ending", WRITABLE)
def test_damaged_files_are_one_sentence(tmp_path, ending, capfd, recwarn):
    noise = np.random.default_rng(1).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / f"whole.{ending}")
    content = bytearray((tmp_path / f"whole.{ending}").read_bytes())
    draw = np.random.default_rng(2)
    for number in range(30):
        damaged = bytearray(content)
        for position in draw.integers(0, min(len(content), 400), 4):
            damaged[position] = draw.integers(256)
        damaged = damaged[: draw.integers(1, len(content))] if number % 3 == 0 else damaged
        (tmp_path / f"bad.{ending}").write_bytes(damaged)
        try:
            image = images.load(tmp_path / f"bad.{ending}", 16)
            assert image.shape[:2] == (1, 3) and torch.isfinite(image).all()
        except ValueError as error:
            assert f"bad.{ending}' cannot be read as a picture: " in str(error) and "\n" not in str(error)
    assert capfd.readouterr() == ("", "") and not recwarn.list


def test_large_pictures_are_reduced_before_they_become_floats(tmp_path):
    ramp = np.linspace(0, 255, 3000).astype(np.uint8)
    picture = Image.fromarray(np.broadcast_to(ramp[None, :, None], (2001, 3000, 3)))
    exif = exif_with(6)
    for ending in ("jpg", "png", "gif"):
        picture.save(tmp_path / f"large.{ending}", **({} if ending == "gif" else {"exif": exif}))
        image = images.load(tmp_path / f"large.{ending}", 100)
        whole = images.resize(images.load(tmp_path / f"large.{ending}"), 100)
        assert image.shape == whole.shape
        assert (image - whole).abs().max() < 0.04


def test_alpha_is_kept_on_request(tmp_path):
    rgba = np.random.default_rng(0).integers(0, 256, (6, 5, 4), dtype=np.uint8)
    Image.fromarray(rgba).save(tmp_path / "in.png", exif=exif_with(6))
    opacity = images.alpha(tmp_path / "in.png")
    np.testing.assert_array_equal((opacity[0, 0] * 255).round().numpy(), np.rot90(rgba[..., 3], -1))
    for ending in ("png", "webp", "tif"):
        path = images.save(torch.full((1, 3, 6, 5), 0.5), tmp_path / f"out.{ending}", alpha=opacity.mT)
        torch.testing.assert_close(images.alpha(path), opacity.mT)
    with pytest.raises(ValueError, match="transparency needs a"):
        images.save(torch.full((1, 3, 6, 5), 0.5), tmp_path / "out.jpg", alpha=opacity.mT)
    assert images.alpha("chelsea") is None


def test_the_opacity_of_any_kind_of_path(tmp_path):
    class Place(os.PathLike):
        def __fspath__(self):
            return str(tmp_path / "half.png")

    Image.fromarray(np.full((4, 4, 4), 51, np.uint8)).save(Place())
    assert images.alpha(Place()).mean().item() == pytest.approx(0.2)
    assert torch.equal(images.mask(Place()), images.mask(str(tmp_path / "half.png")))


@pytest.mark.parametrize("ending", ["png", "jpg", "webp", "tif"])
def test_metadata_is_read_back(tmp_path, ending):
    path = images.save(torch.rand(1, 3, 8, 8), tmp_path / f"a.{ending}", metadata={"ex4lib": "größer\n{}"})
    assert images.metadata(path)["ex4lib"] == "größer\n{}"
    path.write_bytes(b"damaged")
    assert images.metadata(path) == {} == images.metadata(tmp_path / "missing.png")


def test_quality_and_an_encoder_s_limits(tmp_path):
    image = torch.rand(1, 3, 64, 64)
    small, large = (images.save(image, tmp_path / f"{q}.jpg", quality=q).stat().st_size for q in (20, 95))
    assert small < large / 2
    with pytest.raises(ValueError, match="quality must be at most 100"):
        images.save(image, tmp_path / "a.jpg", quality=101)
    with pytest.raises(ValueError, match=r"a\.webp' cannot be written as WEBP"):
        images.save(torch.zeros(1, 3, 1, 17_000), tmp_path / "a.webp")


# --- addresses ----------------------------------------------------------------------------------------------------


def test_home_folder_and_file_urls(tmp_path, monkeypatch, levels):
    monkeypatch.setenv("HOME", str(tmp_path))
    Image.fromarray(levels).save(tmp_path / "ein Bild é.png")
    for source in ("~/ein Bild é.png", (tmp_path / "ein Bild é.png").as_uri(), f"FILE://{tmp_path}/ein Bild é.png"):
        np.testing.assert_array_equal(as_levels(images.load(source)), levels)


@pytest.mark.parametrize("source", ["a" * 5000, "~nobody-of-that-name/a.png", "a\0b", "ftp://example.org/a.png", ""])
def test_names_that_cannot_be(source):
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        images.load(source)
    assert "\n" not in str(caught.value)


def test_urls_are_normalised(server, levels):
    upper = server.replace("http", "HTTP")
    for url in (f"{upper}/ok.png", f"{server}/ok.png#part", f" {server}/ok.png "):
        np.testing.assert_array_equal(as_levels(images.load(url)), levels)
    assert (
        images._ascii("https://bücher.example/ä b.png?q=ü c")
        == "https://xn--bcher-kva.example/%C3%A4%20b.png?q=%C3%BC%20c"
    )
    assert images._ascii("http://a/b%20c") == "http://a/b%20c"


class Hostile(http.server.BaseHTTPRequestHandler):
    """/long claims a terabyte, /endless never ends, /drip sends a byte at a time, /ftp leads elsewhere."""

    def do_GET(self):
        if self.path == "/ftp":
            self.send_response(302)
            self.send_header("Location", "ftp://127.0.0.1/a.png")
            self.end_headers()
            return
        self.send_response(200)
        if self.path == "/long":
            self.send_header("Content-Length", str(10**12))
        self.end_headers()
        try:
            for _ in range(200):
                self.wfile.write(b"x" * (1 if self.path == "/drip" else 1 << 16))
                self.wfile.flush()
                time.sleep(0.02 if self.path == "/drip" else 0)
        except OSError:
            pass

    def log_message(self, *_):
        pass


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("long", "more than 1 MB"),
        ("endless", "more than 1 MB"),
        ("drip", "more than 0.5 s"),
        ("ftp", "neither http nor"),
    ],
)
def test_downloads_are_limited(monkeypatch, path, message):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(images, "MAX_DOWNLOAD", 1 << 20)
    monkeypatch.setattr(images, "MAX_SECONDS", 0.5 if path == "drip" else 20)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hostile) as http_server:
        thread = threading.Thread(target=http_server.serve_forever)
        thread.start()
        try:
            with pytest.raises(ValueError, match=rf"/{path}' cannot be fetched: .*{message}"):
                images.load(f"http://127.0.0.1:{http_server.server_port}/{path}")
        finally:
            http_server.shutdown()
            thread.join()
