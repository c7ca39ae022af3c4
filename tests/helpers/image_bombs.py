"""Valid images of at most a few megabytes whose decoding takes gigabytes or minutes without limits."""

import struct
import zlib

from helpers.dirty_images import chunk, encoded, exif, flat_png
from PIL import Image


def zeros(size):
    return zlib.compress(bytes(size), 9)


def texts_png(count=110, size=7_900_000):
    """Every text is inflated to `size` bytes."""
    text = chunk(b"zTXt", b"name\x00\x00" + zeros(size))
    return flat_png(8, 8, chunks=text * count)


def scans_jpeg(side, scans, **options):
    """A gray progressive JPEG whose last scan is repeated."""
    file = encoded("JPEG", Image.new("L", (side, side), 90), progressive=True, **options)
    last = file.rindex(b"\xff\xda")
    return file[:last] + file[last:-2] * scans + b"\xff\xd9"


def flat_jpeg(width, height, **options):
    return encoded("JPEG", Image.new("RGB", (width, height), (90, 90, 90)), quality=10, **options)


def frames_gif(frames, width, height, screen=None):
    """A GIF of equal frames; `screen` is (width, height)."""
    file = encoded("GIF", Image.new("P", (width, height), 1))
    start = file.index(b",\x00\x00\x00\x00")
    head = bytearray(file[:start])
    if screen:
        head[6:10] = struct.pack("<HH", *screen)
    return bytes(head) + file[start:-1] * frames + b";"


def bombs():
    """Name to bytes. An answer is right, and so is a refusal, if it is cheap."""
    eight = chunk(b"eXIf", exif(8)[6:])
    return {
        "png of 1000000 x 1": flat_png(1_000_000, 1),
        "png of 1 x 1000000": flat_png(1, 1_000_000),
        "png of 300000 x 200": flat_png(300_000, 200),
        "png of 89 megapixels": flat_png(9_459, 9_459),
        "png of 90 megapixels": flat_png(10_000, 9_000),
        "png of 89 megapixels, turned": flat_png(9_459, 9_459, chunks=eight),
        "gray png of 16 bits and 89 megapixels": flat_png(9_459, 9_459, bits=16, color=0),
        "png with alpha, of 16 bits and 33 megapixels": flat_png(5_760, 5_760, bits=16, color=6),
        "png with alpha, of 16 bits and 65 megapixels": flat_png(8_062, 8_062, bits=16, color=6),
        "interlaced png of 89 megapixels, turned": flat_png(9_459, 9_459, interlaced=1, chunks=eight),
        "interlaced png of 70 megapixels": flat_png(8_400, 8_400, color=0, interlaced=1),
        "png with texts": texts_png(),
        "jpeg of 65500 x 1": flat_jpeg(65_500, 1),
        "jpeg of 1 x 65500": flat_jpeg(1, 65_500),
        "jpeg of 81 megapixels": encoded("JPEG", Image.new("L", (9_000, 9_000), 90), quality=10),
        "progressive jpeg of 65 megapixels": flat_jpeg(8_062, 8_062, progressive=True, subsampling=0),
        "progressive jpeg of 81 megapixels": flat_jpeg(9_000, 9_000, progressive=True),
        "jpeg of 12 scans and 81 megapixels": scans_jpeg(9_000, 7),
        "jpeg of 19 scans and 81 megapixels": scans_jpeg(9_000, 14),
        "jpeg of 3000 scans": scans_jpeg(8_000, 3_000),
        "gif of 1500 frames": frames_gif(1_500, 1_000, 1_000),
        "gif with a frame beyond its screen": frames_gif(1, 16_000, 16_000, (10, 10)),
        "gif of 33 megapixels": frames_gif(1, 5_792, 5_792),
        "gif of 89 megapixels": frames_gif(1, 9_459, 9_459),
        "gif of small blocks": frames_gif(1, 10, 10)[:-1] + b"!\xfe\x01a\x00" * 100_000 + b";",
        "gif that begins with small blocks": small_blocks_gif(),
    }


def small_blocks_gif():
    file = frames_gif(1, 10, 10)
    start = file.index(b",\x00\x00\x00\x00")
    return file[:start] + b"!\xfe" + b"\x01a" * 480_000 + b"\x00" + file[start:]
