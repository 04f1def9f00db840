"""Pictures at the edges: turned, resized, transparent, deep, damaged. Each is handled exactly, or refused by its name."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("torch")
Image = pytest.importorskip("PIL.Image")

from runs import encoded, noise  # noqa: E402

from tinyddpm.training import load  # noqa: E402
from tinyddpm.training.data import sources  # noqa: E402
from tinyddpm.training.data.pictures import decode, fit, read_header, refusing_oversized  # noqa: E402

EDGE = 16


def str_only(value: Any) -> str:
    return value if isinstance(value, str) else ""


def smooth(height: int, width: int) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return np.stack([8 * y % 256, 8 * x % 256, 4 * (x + y) % 256], axis=-1).astype(np.uint8)


def read(content: bytes) -> np.ndarray:
    with refusing_oversized():
        header = read_header(io.BytesIO(content), "it")
    pixels = decode(io.BytesIO(content), "it")
    assert pixels.shape == (header.height, header.width, header.channels)
    return pixels


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def raw_png(width: int, height: int, depth: int, colour: int, rows: bytes, *more: bytes) -> bytes:
    """A PNG from its parts."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(more) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def tiff(pixels: np.ndarray, *more: tuple[int, int]) -> bytes:
    """A TIFF of uint16 (height, width, C) in the order of bytes of the array's dtype; `more` are entries of type SHORT."""
    height, width, count = pixels.shape
    order, data = "<>"[pixels.dtype.str[0] == ">"], pixels.tobytes() + struct.pack("<4H", *[16] * 4)
    bits = (258, 3, count, 8 + pixels.nbytes) if count > 2 else (258, 3, 1, 16)
    entries = [(256, 3, 1, width), (257, 3, 1, height), bits, (259, 3, 1, 1), (262, 3, 1, 2 if count > 2 else 1), (273, 4, 1, 8),
               (277, 3, 1, count), (278, 3, 1, height), (279, 4, 1, pixels.nbytes)]  # fmt: skip
    entries += [(tag, 3, 1, value) for tag, value in more]
    table = b""
    for tag, kind, number, value in sorted(entries):
        short = kind == 3 and number == 1
        table += struct.pack(order + ("HHIHH" if short else "HHII"), tag, kind, number, value, *([0] if short else []))
    if order == ">":
        data = pixels.tobytes() + struct.pack(">4H", *[16] * 4)
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", 8 + len(data))
    return head + data + struct.pack(order + "H", len(entries)) + table + bytes(4)


# ---- what is handled


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["PNG", "JPEG", "TIFF", "WEBP"])
def test_the_eight_orientations(orientation: int, form: str) -> None:
    """EXIF's definition: which side of the scene the stored rows and columns start from."""
    scene = smooth(16, 24)
    turn = {1: lambda p: p, 2: np.fliplr, 3: lambda p: np.rot90(p, 2), 4: np.flipud, 5: lambda p: p.swapaxes(0, 1),
            6: lambda p: np.rot90(p, 1), 7: lambda p: np.rot90(p, 2).swapaxes(0, 1), 8: lambda p: np.rot90(p, -1)}  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.ascontiguousarray(turn[orientation](scene)))
    options: dict[str, dict[str, Any]] = {"JPEG": {"quality": 100, "subsampling": 0}, "WEBP": {"lossless": True}}
    seen = read(encoded(stored, form, exif=exif, **options.get(form, {})))
    np.testing.assert_allclose(seen.astype(int), scene, atol=3 if form == "JPEG" else 0)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr"])
def test_every_mode_becomes_grey_or_colour(mode: str) -> None:
    colours = Image.fromarray(np.array([[[255, 0, 0], [0, 255, 0], [255, 255, 255], [0, 0, 0]]], np.uint8))
    content = encoded(colours.convert(mode), "TIFF" if mode in ("CMYK", "YCbCr") else "PNG")
    seen = read(content)
    grey = mode in ("1", "L", "LA")
    expected = np.asarray(colours.convert("1" if mode == "1" else "L").convert("L") if grey else colours)
    atol = 1 if mode == "YCbCr" else 0  # rounded on the way there and back
    np.testing.assert_allclose(seen.astype(int), expected.reshape(*seen.shape), atol=atol)


@pytest.mark.parametrize(("mode", "keyed"), [("L", 7), ("RGB", (1, 2, 3)), ("P", 1)])
def test_a_transparent_colour_becomes_black(mode: str, keyed: Any) -> None:
    """tRNS: a value that stands for nothing, in pictures without an alpha channel."""
    if mode == "P":
        picture = Image.fromarray(np.array([[0, 1]], np.uint8), "P")
        picture.putpalette([200, 100, 50, 9, 9, 9])
    else:
        shown = {"L": 200, "RGB": (200, 100, 50)}[mode]
        picture = Image.fromarray(np.array([[shown, keyed]], np.uint8), mode)
    seen = read(encoded(picture, transparency=keyed))
    assert seen[0, 0].tolist() == ([200] if mode == "L" else [200, 100, 50])
    assert not seen[0, 1].any()


@given(st.integers(0, 255), st.integers(0, 255))
def test_alpha_weighs_the_colour_over_black(value: int, alpha: int) -> None:
    for mode in ("RGBA", "LA"):
        pixel = [value] * (len(mode) - 1) + [alpha]
        seen = read(encoded(Image.fromarray(np.array([[pixel]], np.uint8), mode)))
        assert abs(int(seen[0, 0, 0]) - value * alpha / 255) <= 0.5 + 1e-9


# ---- 16 bits


def deep_png(pixels: np.ndarray, *more: bytes) -> bytes:
    """A PNG of uint16 (height, width, 1..4), the rows filtered in turn by each of its five filters."""
    height, width, count = pixels.shape
    rows, above, back = b"", np.zeros(2 * width * count, int), 2 * count
    for y in range(height):
        line = np.frombuffer(pixels[y].astype(">u2").tobytes(), np.uint8).astype(int)
        left, corner = (np.concatenate([np.zeros(back, int), row[:-back]]) for row in (line, above))
        near = np.stack([left, above, corner])
        paeth = np.take_along_axis(near, np.abs(left + above - corner - near).argmin(axis=0)[None], 0)[0]
        guess = [0, left, above, (left + above) // 2, paeth][y % 5]
        rows += bytes([y % 5]) + ((line - guess) % 256).astype(np.uint8).tobytes()
        above = line
    return raw_png(width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[count], rows, *more)


def deep(*shape: int) -> np.ndarray:
    return np.random.RandomState(1).randint(0, 2**16, shape).astype(np.uint16)


@pytest.mark.parametrize("count", [1, 3])
def test_sixteen_bits_are_read_to_the_last(count: int) -> None:
    """Pillow alone keeps the upper eight of a colour picture's."""
    pixels = deep(7, 5, count)
    for content in (deep_png(pixels), tiff(pixels.astype("<u2")), tiff(pixels.astype(">u2"))):
        seen = read(content)
        assert seen.dtype == np.uint16
        np.testing.assert_array_equal(seen, pixels)
    pgm = b"P5 5 7 65535\n" + pixels[..., 0].astype(">u2").tobytes()
    np.testing.assert_array_equal(read(pgm), pixels[..., :1])
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = read(deep_png(pixels, chunk(b"eXIf", exif.tobytes()[6:])))
    np.testing.assert_array_equal(turned, np.rot90(pixels, -1))


@pytest.mark.parametrize("count", [2, 4])
def test_alpha_of_sixteen_bits_weighs_the_colour_over_the_background(count: int) -> None:
    pixels = deep(7, 5, count).astype(float)
    share = pixels[..., -1:] / 65_535
    for background, value in (("black", 0), ("white", 65_535)):
        seen = decode(io.BytesIO(deep_png(pixels.astype(np.uint16))), "it", background)
        assert np.abs(seen - (pixels[..., :-1] * share + value * (1 - share))).max() <= 0.5 + 1e-6
    keyed = raw_png(2, 1, 16, 2, b"\0" + struct.pack(">6H", 1, 2, 3, 1, 2, 4), chunk(b"tRNS", struct.pack(">3H", 1, 2, 3)))
    assert decode(io.BytesIO(keyed), "it", "white").tolist() == [[[65_535] * 3, [1, 2, 4]]]


def test_eight_bits_among_sixteen_are_multiplied_by_257(tmp_path: Path) -> None:
    pixels, plain = deep(4, 4, 3), noise(4, 4, 3)
    (tmp_path / "a.png").write_bytes(deep_png(pixels))
    Image.fromarray(plain).save(tmp_path / "b.png")
    images = load(tmp_path)
    assert images.levels == 2**16
    np.testing.assert_array_equal(images.pixels[:].transpose(0, 2, 3, 1), [pixels, 257 * plain.astype(int)])
    assert images.scaled().max() <= 1
    assert load(tmp_path, image_size=2).pixels[:].max() > 255


@pytest.mark.parametrize("dtype", [np.float32, np.int32, np.int16])
def test_measured_values_have_the_range_of_arrays(tmp_path: Path, dtype: Any) -> None:
    """TIFFs of floats, of 32 bits and of signed numbers are as the array of their values."""
    values = (np.random.RandomState(2).standard_normal((6, 4, 8)) * 1000).astype(dtype)
    for k, value in enumerate(values):
        signed = (
            tiff(value[..., None].view(np.uint16), (339, 2)) if dtype == np.int16 else encoded(Image.fromarray(value), "TIFF")
        )
        (tmp_path / f"{k}.tif").write_bytes(signed)
    given: tuple[dict[str, Any], ...] = ({}, {"image_size": (2, 4)}, {"value_range": (-9000, 9000)})
    for options in given:
        images, array = load(tmp_path, **options), load(values, **options)
        assert (images.levels, images.value_range) == (array.levels, array.value_range)
        np.testing.assert_array_equal(images.pixels[:], array.pixels[:])
    (tmp_path / "other.png").write_bytes(encoded(noise(4, 8)))
    with pytest.raises(ValueError, match=r"^data: .*0\.tif: must have 8 or 16 bits a channel, as .*other\.png has"):
        load(tmp_path)


def test_a_picture_to_edit_is_read_as_the_models_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from types import SimpleNamespace

    from tinyddpm._commands.inputs import read_mask, read_picture

    model: Any = SimpleNamespace(shape=(3, 4, 4), config=SimpleNamespace(background="white", levels=None))
    pixels = noise(4, 4, 3)
    (tmp_path / "deep.png").write_bytes(deep_png(257 * pixels.astype(np.uint16)))
    (tmp_path / "plain.png").write_bytes(encoded(pixels))
    deeper, plain = (read_picture("image", str(tmp_path / f"{name}.png"), model, quiet=True) for name in ("deep", "plain"))
    np.testing.assert_allclose(deeper, plain, atol=1e-6)
    files = [str(tmp_path / f"{name}.png") for name in ("deep", "plain")]
    kept = [read_mask("mask", file, ("image", file), model.shape) for file in files]
    np.testing.assert_array_equal(kept[0], kept[1])
    (tmp_path / "clear.png").write_bytes(encoded(np.zeros((4, 4, 4), np.uint8)))
    assert read_picture("image", str(tmp_path / "clear.png"), model, quiet=True).min() == 1
    model.config.levels = 2
    (tmp_path / "bits.png").write_bytes(encoded(pixels // 128))
    seen = read_picture("image", str(tmp_path / "bits.png"), model, quiet=False)
    assert sorted(set(seen.ravel().tolist())) == [-1, 1]
    assert "values 0..1 are black to white, as the model's data" in capsys.readouterr().err
    (tmp_path / "float.tif").write_bytes(encoded(Image.fromarray(np.zeros((4, 4), np.float32)), "TIFF"))
    with pytest.raises(ValueError, match=r"^image: .*float\.tif: must have 8 or 16 bits"):
        read_picture("image", str(tmp_path / "float.tif"), model, quiet=True)


# ---- sizes


def exact(row: np.ndarray, size: int) -> np.ndarray:
    """Antialiased bicubic (a = -1/2) along one axis, in float64, from its definition."""
    scale = len(row) / size
    wide = max(scale, 1.0)
    result = np.empty(size)
    for k in range(size):
        centre = (k + 0.5) * scale
        x = np.abs((np.arange(len(row)) + 0.5 - centre) / wide)
        weight = np.where(x < 1, (1.5 * x - 2.5) * x * x + 1, np.where(x < 2, ((-0.5 * x + 2.5) * x - 4) * x + 2, 0))
        result[k] = weight @ row / weight.sum()
    return result


@given(st.integers(1, 14), st.integers(1, 14), st.integers(0, 2**32 - 1))
def test_resizing_rounds_the_exact_filter_to_the_nearest(side: int, size: int, seed: int) -> None:
    """Rounding once, after both axes: with uint8 in between, as Pillow does by itself, many pixels are off by one."""
    picture = np.random.RandomState(seed).randint(0, 256, (side, side, 3), np.uint8)
    wanted = np.apply_along_axis(exact, 1, np.apply_along_axis(exact, 0, picture.astype(float), size), size)
    assert np.abs(fit(picture, (size, size)) - np.clip(wanted, 0, 255)).max() <= 0.5 + 1e-3  # planes are float32


@given(st.integers(1, 20), st.integers(1, 20), st.integers(1, 20), st.integers(1, 20), st.integers(0, 255))
def test_any_size_fits_any_other_and_a_flat_picture_stays_flat(h: int, w: int, to_h: int, to_w: int, value: int) -> None:
    seen = fit(np.full((h, w, 1), value, np.uint8), (to_h, to_w))
    assert seen.shape == (to_h, to_w, 1)
    assert (seen == value).all()


def test_the_middle_is_what_stays() -> None:
    picture = np.zeros((4, 12, 1), np.uint8)
    picture[:, 4:8] = 200
    np.testing.assert_array_equal(fit(picture, (4, 4)), np.full((4, 4, 1), 200))
    np.testing.assert_array_equal(fit(picture.transpose(1, 0, 2), (4, 4)), np.full((4, 4, 1), 200))
    np.testing.assert_array_equal(fit(picture, (4, 12)), picture)


def test_a_folder_of_any_sizes(tmp_path: Path) -> None:
    for k, shape in enumerate([(20, 30, 3), (7, 5, 3), (16, 16, 3)]):
        Image.fromarray(noise(*shape)).save(tmp_path / f"{k}.png")
    images = load(tmp_path, image_size=16)
    assert images.shape == (3, 16, 16)
    np.testing.assert_array_equal(images.pixels[2].transpose(1, 2, 0), noise(16, 16, 3))
    with pytest.raises(ValueError, match=r"image_size must be given"):
        load(tmp_path)


# ---- what is refused


def unread() -> dict[str, bytes]:
    return {
        "colour 16-bit PPM": b"P6 2 2 65535\n" + bytes(24),
        "16-bit TIFF, alpha multiplied in": tiff(np.zeros((2, 2, 4), "<u2"), (338, 1)),
    }


def other_formats() -> dict[str, bytes]:
    """Content of kinds that Pillow would read under any name; EPS has it run another program."""
    picture = Image.fromarray(noise(8, 8, 3))
    contents = {form: encoded(picture, form) for form in ("EPS", "PDF", "TGA", "PCX", "ICO", "SGI")}
    return {**contents, "text": b"no image", "nothing": b"", "zeros": bytes(1000)}


@pytest.mark.parametrize(("kind", "content"), unread().items(), ids=str_only)
def test_other_numbers_than_8_or_16_bits_are_refused_not_cut(tmp_path: Path, kind: str, content: bytes) -> None:
    (tmp_path / "deep.png").write_bytes(content)
    with pytest.raises(ValueError, match=r"^data: .*deep\.png: must have 8 or 16 bits a channel, .*\.npy") as caught:
        load(tmp_path)
    assert "\n" not in str(caught.value)


def test_six_bits_are_not_sixteen() -> None:
    head = struct.pack("<IiiHHIIiiII", 40, 2, 1, 1, 16, 3, 4, 0, 0, 0, 0) + struct.pack("<III", 0xF800, 0x07E0, 0x001F)
    content = b"BM" + struct.pack("<IHHI", 14 + len(head) + 4, 0, 0, 14 + len(head)) + head + struct.pack("<HH", 0xF800, 0x1F)
    assert read(content).tolist() == [[[255, 0, 0], [0, 0, 255]]]


@pytest.mark.parametrize(("kind", "content"), other_formats().items(), ids=str_only)
def test_other_formats_are_not_even_looked_at(tmp_path: Path, kind: str, content: bytes) -> None:
    (tmp_path / "picture.png").write_bytes(content)
    with pytest.raises(ValueError, match=r"^data: .*picture\.png: must be a PNG, JPEG, "):
        load(tmp_path)


@pytest.mark.parametrize("side", [10_000, 14_000, 2**31 - 1])
def test_a_bomb_is_refused_from_its_header(tmp_path: Path, side: int) -> None:
    """A few hundred bytes that promise gigabytes; Pillow only warns of the first."""
    (tmp_path / "bomb.png").write_bytes(raw_png(side, side, 8, 2, b""))
    for size in (None, 8):
        with warnings.catch_warnings():
            warnings.simplefilter("default")
            with pytest.raises(ValueError, match=r"^data: .*bomb\.png: "):
                load(tmp_path, image_size=size)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM"])
def test_a_cut_file_is_named_wherever_it_is_cut(tmp_path: Path, form: str) -> None:
    whole = encoded(Image.fromarray(noise(EDGE, EDGE, 3)), form)
    file = tmp_path / "cut.png"
    refused = 0
    ends = np.unique(np.linspace(0, len(whole) - 1, 40).astype(int))
    for end in ends:
        file.write_bytes(whole[:end])
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                images = load(tmp_path)
        except ValueError as error:
            refused += str(error).startswith(f"data: {file}: ") and "\n" not in str(error)
        else:  # what was cut off is behind the pixels: an end marker or the like
            assert images.shape == (3, EDGE, EDGE)
    assert refused >= len(ends) * 3 // 4


# ---- one bad file among many


def many(path: Path, count: int = 300, bad: tuple[int, ...] = (17, 170)) -> Path:
    path.mkdir()
    picture = encoded(Image.fromarray(noise(EDGE, EDGE, 3)))
    for i in range(count):
        (path / f"{i:04d}.png").write_bytes(picture if i not in bad else picture[: (len(picture) // 2, 20)[i == bad[0]]])
    return path


@pytest.mark.parametrize("limit", [2**28, 0])
@pytest.mark.parametrize("workers", [0, 4])
def test_bad_files_are_skipped_by_a_flag(tmp_path: Path, limit: int, workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "IN_MEMORY", limit)
    source = many(tmp_path / "many")
    with pytest.raises(ValueError, match=r"^data: .*0017\.png: "):
        load(source, workers=workers)
    images = load(source, bad_files="skip", workers=workers)
    assert len(images) == 298
    assert [text.partition(".png")[0][-4:] for text in images.skipped] == ["0017", "0170"]
    assert images.scaled().shape == (298, 3, EDGE, EDGE)
    assert images.split()[0].skipped == images.skipped


def test_labels_stay_with_their_images_where_others_are_skipped(tmp_path: Path) -> None:
    for name, value in (("a", 10), ("b", 20)):
        (tmp_path / name).mkdir()
        for i in range(4):
            content = encoded(Image.fromarray(np.full((EDGE, EDGE), value, np.uint8)))
            (tmp_path / name / f"{i}.png").write_bytes(content if i != 1 else content[:40])
    images = load(tmp_path, bad_files="skip")
    assert images.pixels[:, 0, 0, 0].tolist() == [10, 10, 10, 20, 20, 20]
    np.testing.assert_array_equal(images.labels, [0, 0, 0, 1, 1, 1])


def test_nothing_but_bad_files_is_an_error(tmp_path: Path) -> None:
    source = many(tmp_path / "many", 3, (0, 1, 2))
    with pytest.raises(ValueError, match=r"0000\.png: .*none of the 3"):
        load(source, bad_files="skip")
