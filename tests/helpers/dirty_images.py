"""Encoded images of every kind that folders hold: some to convert, some to leave out."""

import functools
import io
import struct
import zlib

import numpy as np
from PIL import Image, ImageOps
from sklearn.datasets import load_sample_image


def photo(width=101, height=75):
    return Image.fromarray(load_sample_image("china.jpg")).resize((width, height))


def encoded(format_name, image=None, **options):
    file = io.BytesIO()
    (image or photo()).save(file, format_name, **options)
    return file.getvalue()


def exif(orientation, endian="<"):
    tags = Image.Exif()
    tags.endian = endian
    tags[0x010F], tags[0x0112], tags[0x0131] = "maker", orientation, "software"
    return tags.tobytes()


def inks(width=101, height=75):
    """A CMYK image whose black varies by itself."""
    image = np.array(photo(width, height).convert("CMYK"))
    image[..., 3] = np.linspace(0, 250, width)
    return Image.fromarray(image, "CMYK")


def without_adobe(jpeg):
    """A JPEG less its APP14 segment."""
    place = jpeg.index(b"\xff\xee")
    return jpeg[:place] + jpeg[place + 16 :]


def as_ycck(jpeg):
    """A CMYK JPEG whose inks are declared to be YCCK: other colours, but well-formed."""
    place = jpeg.index(b"Adobe") + 11
    return jpeg[:place] + b"\x02" + jpeg[place + 1 :]


def chunk(kind, data):
    checksum = struct.pack(">I", zlib.crc32(kind + data))
    return struct.pack(">I", len(data)) + kind + data + checksum


def flat_png(width, height, bits=8, color=2, interlaced=0, chunks=b""):
    """Written row by row: Pillow and NumPy would take all of the pixels' memory."""
    row = bytes(1 + width * bits * {0: 1, 2: 3, 6: 4}[color] // 8)
    packer = zlib.compressobj(9)
    rows = -(-(2**20) // len(row))
    data = b"".join(packer.compress(row * min(rows, height - first)) for first in range(0, height, rows))
    if interlaced:  # seven images; the pixels of the whole suffice
        data += packer.compress(row * 8)
    header = struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, interlaced)
    body = chunk(b"IHDR", header) + chunks + chunk(b"IDAT", data + packer.flush()) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def png16(channels):
    """Written by hand: Pillow has no colours of 16 bits, and TensorFlow must not start at import."""
    image = np.array(photo()).astype("uint16")[..., :channels] * 257
    image -= np.minimum(image, 100)
    height, width = image.shape[:2]
    rows = image.astype(">u2").reshape(height, -1).view("uint8")
    lines = np.concatenate([np.zeros((height, 1), "uint8"), rows], 1)  # 0: no filter

    header = struct.pack(">IIBBBBB", width, height, 16, 2 if channels == 3 else 0, 0, 0, 0)
    data = zlib.compress(lines.tobytes())
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def convertible():
    """Name to bytes; all of them Pillow reads."""
    palette = photo().convert("P", palette=Image.Palette.ADAPTIVE)
    cmyk = encoded("JPEG", inks(), quality=95)
    kinds = {
        "jpeg": encoded("JPEG", quality=90),
        "jpeg 4:4:4": encoded("JPEG", subsampling=0),
        "jpeg 4:2:2": encoded("JPEG", subsampling=1),
        "progressive jpeg": encoded("JPEG", progressive=True),
        "jpeg with a tail": encoded("JPEG") + bytes(50),
        "gray jpeg": encoded("JPEG", photo().convert("L")),
        "cmyk jpeg": cmyk,
        "cmyk jpeg without Adobe's segment": without_adobe(cmyk),
        "ycck jpeg": as_ycck(cmyk),
        "png": encoded("PNG"),
        "gray png": encoded("PNG", photo().convert("L")),
        "png of 1 bit": encoded("PNG", photo().convert("1")),
        "png with alpha": encoded("PNG", Image.merge("RGBA", [*photo().split(), photo().convert("L")])),
        "gray png with alpha": encoded("PNG", photo().convert("LA")),
        "palette png": encoded("PNG", palette),
        "palette png with a transparent colour": encoded("PNG", palette, transparency=3),
        "png of 16 bits": png16(3),
        "gif": encoded("GIF", palette),
        "bmp": encoded("BMP"),
        "bmp of 32 bits": encoded("BMP", photo().convert("RGBA")),
    }
    for orientation in range(1, 9):
        kinds[f"jpeg turned {orientation}"] = encoded("JPEG", exif=exif(orientation, "<>"[orientation % 2]))
    kinds["png turned 6"] = encoded("PNG", exif=exif(6))
    return kinds


def by_pillow(file):
    return np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(file))).convert("RGB")).astype(int)


@functools.cache
def unusable():
    """Name to (bytes, a part of the reason)."""
    jpeg, png = encoded("JPEG"), encoded("PNG")
    return {
        "empty": (b"", "empty"),
        "text": (b"a text that is long enough to look like a header of something", "not a JPEG, PNG"),
        "html": (b"<html><body>404 not found</body></html>", "not a JPEG, PNG"),
        "truncated jpeg": (jpeg[: len(jpeg) // 2], "truncated"),
        "jpeg less its last bytes": (jpeg[:-40], "truncated"),
        "a jpeg's first bytes": (jpeg[:3], "truncated"),
        "truncated png": (png[: len(png) // 2], "truncated"),
        "damaged png": (png[:300] + b"damaged" + png[307:], "damaged"),
        "huge jpeg": (encoded("JPEG", Image.new("L", (10_000, 9_000))), "10000 x 9000 pixels; the limit is"),
        "huge png": (flat_png(10_000, 9_000, color=0), "10000 x 9000 pixels; the limit is"),
        "bmp with a palette": (encoded("BMP", photo().convert("P")), "BMP image with 8 bits"),
    }
