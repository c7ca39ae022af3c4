"""Exif data of chosen directories."""

import struct
import zlib


def directory(endian, entries, offset=8, gap=0):
    """Exif data: a header, `gap` bytes, and a directory of (tag, type, count, value)."""
    rows = [
        struct.pack(f"{endian}HHI", tag, kind, count)
        + (struct.pack(f"{endian}HH", value, 0) if kind == 3 else struct.pack(f"{endian}I", value))
        for tag, kind, count, value in entries
    ]
    head = {"<": b"II*\x00", ">": b"MM\x00*"}[endian] + struct.pack(f"{endian}I", offset)
    return head + bytes(gap) + struct.pack(f"{endian}H", len(rows)) + b"".join(rows) + bytes(4)


def with_exif(file, data, place=None):
    """A JPEG or PNG with Exif data at a byte; by default first."""
    if file[:1] == b"\xff":
        segment = b"Exif\x00\x00" + data
        segment, place = b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment, place or 2
    else:
        segment = struct.pack(">I", len(data)) + b"eXIf" + data
        segment, place = segment + struct.pack(">I", zlib.crc32(segment[4:])), place or 33
    return file[:place] + segment + file[place:]
