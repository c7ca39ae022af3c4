"""Images damaged in their structures: lengths, order, sizes, tables, scans, frames and Exif data."""

import itertools
import struct
import zlib

import numpy as np
from helpers.dirty_images import as_ycck, encoded, exif, inks, photo, png16
from helpers.exif_data import directory, with_exif
from helpers.image_bombs import frames_gif
from PIL import Image

SIDES = (0, 1, 2, 255, 256, 65_535, 1_000_000, 2**31 - 1, 2**31, 2**32 - 1)
WORDS = (0, 1, 2, 3, 0x7FFF, 0xFFFF)


def bases():
    """Small images of every format."""
    small = photo(37, 29)
    return {
        "jpeg": encoded("JPEG", small, exif=exif(6)),
        "gray jpeg": encoded("JPEG", small.convert("L")),
        "progressive jpeg": encoded("JPEG", small, progressive=True, exif=exif(3, ">")),
        "ycck jpeg": as_ycck(encoded("JPEG", inks(37, 29))),
        "png": encoded("PNG", small, exif=exif(8)),
        "palette png": encoded("PNG", small.convert("P", palette=Image.Palette.ADAPTIVE), transparency=3),
        "png of 16 bits": png16(3),
        "gif": encoded("GIF", small.convert("P")),
        "animated gif": frames_gif(3, 37, 29),
        "bmp": encoded("BMP", small),
        "bmp of 32 bits": encoded("BMP", small.convert("RGBA")),
    }


def segments(jpeg):
    """(start, end) of each segment of a JPEG; a scan's data belong to its header."""
    places, start = [], 2
    while start < len(jpeg) - 2:
        end = start + 2 + int.from_bytes(jpeg[start + 2 : start + 4], "big")
        if jpeg[start + 1] == 0xDA:
            while jpeg[end] != 0xFF or jpeg[end + 1] == 0 or 0xD0 <= jpeg[end + 1] <= 0xD7:
                end += 1
        places.append((start, end))
        start = end
    return places


def chunks(png):
    """(start, end) of each chunk of a PNG."""
    places, start = [], 8
    while start < len(png):
        end = start + 12 + int.from_bytes(png[start : start + 4], "big")
        places.append((start, end))
        start = end
    return places


def patched(file, place, value, size, order="big"):
    return file[:place] + (value % 256**size).to_bytes(size, order) + file[place + size :]


def checked(png):
    """A PNG with the right checksums."""
    for start, end in chunks(png):
        png = patched(png, end - 4, zlib.crc32(png[start + 4 : end - 4]), 4)
    return png


def moved(file, places):
    """Parts dropped, doubled, repeated, and swapped with the next."""
    for number, (start, end) in enumerate(places):
        before, part, after = file[:start], file[start:end], file[end:]
        yield f"part {number} dropped", before + after
        yield f"part {number} doubled", before + part + part + after
        yield f"part {number} 60 times", before + part * 60 + after
        yield f"cut before part {number}", before
        yield f"cut in part {number}", file[: (start + end) // 2]
        if number + 1 < len(places):
            last = places[number + 1][1]
            yield f"part {number} swapped", before + file[end:last] + part + file[last:]


def jpegs(file):
    places = segments(file)
    yield from moved(file, places)
    for start, _ in places:
        marker = file[start + 1]
        length = int.from_bytes(file[start + 2 : start + 4], "big")
        for word in (*WORDS, length - 1, length + 1):
            yield f"length of {marker:x} is {word}", patched(file, start + 2, word, 2)
        for other in (0x00, 0xC0, 0xC1, 0xC2, 0xC3, 0xC9, 0xCA, 0xD8, 0xD9, 0xDD, 0xFF):
            yield f"{marker:x} is {other:x}", patched(file, start + 1, other, 1)
        for place in range(start + 4, min(start + 20, len(file))):
            for byte in (0, 0x11, 0x44, 0xFF):
                if marker in (0xC0, 0xC2, 0xDA, 0xDB, 0xC4):
                    yield f"byte {place - start} of {marker:x} is {byte}", patched(file, place, byte, 1)
        if marker in (0xC0, 0xC2):
            for height, width in itertools.product((0, 1, 9_000, 65_535), repeat=2):
                sides = struct.pack(">HH", height, width)
                yield f"{width} x {height}", file[: start + 5] + sides + file[start + 9 :]


def pngs(file):
    places = chunks(file)
    yield from moved(file, places)
    for start, end in places:
        kind = file[start + 4 : start + 8].decode()
        length = int.from_bytes(file[start : start + 4], "big")
        for value in (0, 1, length - 1, length + 1, 2**16, 2**31 - 1, 2**31, 2**32 - 1):
            yield f"length of {kind} is {value}", patched(file, start, value, 4)
        yield f"checksum of {kind}", patched(file, end - 1, file[end - 1] ^ 1, 1)
        for letter in range(4):
            yield f"letter {letter} of {kind}", checked(patched(file, start + 4 + letter, 0x41, 1))
    for width, height in itertools.product(SIDES, repeat=2):
        yield f"{width} x {height}", checked(file[:16] + struct.pack(">II", width, height) + file[24:])
    for place, values in (
        (24, (0, 1, 2, 4, 8, 16, 17)),
        (25, range(8)),
        (26, (1,)),
        (27, (1,)),
        (28, (1, 2)),
    ):
        for value in values:
            yield f"byte {place} is {value}", checked(patched(file, place, value, 1))


def gifs(file):
    frame = file.index(b",\x00\x00\x00\x00")
    for place in (6, 8, frame + 1, frame + 3, frame + 5, frame + 7):
        for word in (*WORDS, 36, 38):
            yield f"word {place} is {word}", patched(file, place, word, 2, "little")
    for place in (*range(10, 16), *range(frame, frame + 16)):
        for byte in (0, 1, 0x21, 0x2C, 0x3B, 0x80, 0x87, 0xFF):
            yield f"byte {place} is {byte}", patched(file, place, byte, 1)
    for place in range(frame + 10, len(file), max(1, len(file) // 40)):
        yield f"ends at {place}", file[:place] + b";"
        yield f"block at {place}", patched(file, place, 255, 1)


def bmps(file):
    for place in range(2, 54, 4):
        for value in (*SIDES, 16, 24, 2**32 - 29, 2**32 - 37):
            yield f"number {place} is {value}", patched(file, place, value, 4, "little")
    for bits in (1, 4, 8, 16, 24, 32, 48):
        yield f"{bits} bits", patched(file, 28, bits, 2, "little")


def exifs():
    """Directories of all kinds in JPEG and PNG."""
    plain, png = encoded("JPEG", photo(37, 29)), encoded("PNG", photo(37, 29))
    for endian, kind, count, value, offset in itertools.product(
        "<>", (0, 1, 2, 3, 4, 7, 9), (0, 1, 2, 2**32 - 1), (0, 1, 6, 9), (0, 8, 9, 60_000, 2**32 - 1)
    ):
        data = directory(endian, [(0x0112, kind, count, value)], offset)
        name = f"exif {endian} {kind} {count} {value} {offset}"
        if endian == "<":
            yield name, with_exif(plain, data)
        else:
            yield name, with_exif(png, data)


def corpus(count):
    """Name to bytes of `count` images: all cuts within the first 64 bytes, and a choice of the others."""
    found = {}
    for name, file in bases().items():
        found |= {f"{name} cut at {size}": file[:size] for size in range(1, 65)}
    more = {f"exif: {name}": file for name, file in exifs()}
    kinds = {"jpeg": jpegs, "png": pngs, "gif": gifs, "bmp": bmps}
    for base, file in bases().items():
        damage = next(kinds[word] for word in base.split() if word in kinds)
        more |= {f"{base}: {name}": damaged for name, damaged in damage(file)}
    # A generator of fixed seed, so that a failure can be repeated.
    names = np.random.default_rng(0).permutation(sorted(more))[: count - len(found)]
    return found | {str(name): more[str(name)] for name in names}
