"""Damages the structures of HDF5 files."""

import struct


def heap(objects, size=4096):
    """The bytes of a heap of strings of a stated size, with the (index, size) of objects without values."""
    return struct.pack("<4sB3xQ", b"GCOL", 1, size) + b"".join(
        struct.pack("<H6xQ", *each) for each in objects
    )


def with_endless_heap(content):
    """A file whose first heap of strings ends in a free object of size 0."""
    content = bytearray(content)
    start = content.index(b"GCOL")
    end, position = start + int.from_bytes(content[start + 8 : start + 16], "little"), start + 16
    while index := int.from_bytes(content[position : position + 2], "little"):
        position += 16 + -(-int.from_bytes(content[position + 8 : position + 16], "little") // 8) * 8
    assert index == 0 < int.from_bytes(content[position + 8 : position + 16], "little") <= end - position
    content[position + 8 : position + 16] = bytes(8)
    return bytes(content)
