"""HDF5 files that the HDF5 library (1.14) reads in minutes, in gigabytes, or without end."""

import io
import re
import struct

import h5py


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


def with_string_length(content, length, new_length):
    """A file in which a reference to a string of variable length states another length."""
    heaps = [match.start() for match in re.finditer(b"GCOL", content)]
    (old,) = {old for heap in heaps if (old := struct.pack("<IQ", length, heap)) in content}
    return content.replace(old, struct.pack("<I", new_length) + old[4:])


def _group(names):
    """A file with a group `layers`, and the addresses of its tree, its names and its symbols."""
    file = io.BytesIO()
    with h5py.File(file, "w") as opened:
        layers = opened.create_group("layers")
        for name in names:
            layers.create_group(name)
        header = h5py.h5g.get_objinfo(layers.id, b".").objno[0]
    content = bytearray(file.getvalue())
    position = header + 16
    while (message := struct.unpack_from("<HH", content, position))[0] != 17:
        position += 8 + message[1]
    tree, heap = struct.unpack_from("<QQ", content, position + 8)
    nodes = struct.unpack_from(f"<{2 * content[tree + 6]}Q", content, tree + 24)[1::2]
    symbols = [node + 8 + 40 * index for node in nodes for index in range(content[node + 6])]
    assert len(symbols) == len(names)
    return content, tree, heap, symbols


def _finished(content):
    struct.pack_into("<Q", content, 40, len(content))  # the end of the file
    return bytes(content)


def endless_names():
    """The first free block of a heap of names is its own successor."""
    content, _, heap, _ = _group("abc")
    _, free, names = struct.unpack_from("<QQQ", content, heap + 8)
    struct.pack_into("<Q", content, names + free, free)
    return _finished(content)


def tree_of_one_leaf():
    """Seven levels of nodes with 32 times the same child, which are visited 34 billion times."""
    content, tree, heap, _ = _group("abc")
    child = tree
    for level in range(1, 8):
        node = struct.pack("<4sBBHQQ", b"TREE", 0, level, 32, 2**64 - 1, 2**64 - 1)
        node += struct.pack("<QQ", 0, child) * 32 + bytes(8)
        child = len(content)
        content += node
    pair = struct.pack("<QQ", tree, heap)
    return _finished(content.replace(pair, struct.pack("<QQ", child, heap)))


def headers_with_one_tail():
    """Headers that continue at the same 40,000 messages, which take a third of a second each."""
    content, _, _, symbols = _group([f"{index}" for index in range(100)])
    tail, count = len(content), 40_000
    content += bytes(8 * count)
    for symbol in symbols:
        body = struct.pack("<HHB3xQQ", 16, 16, 0, tail, 8 * count)
        struct.pack_into("<QI", content, symbol + 8, len(content), 0)
        content += struct.pack("<BxHII4x", 1, count + 1, 1, len(body)) + body
    return _finished(content)


def members_with_one_name():
    """The members of a group have the same 50,000 bytes as their names."""
    content, _, _, symbols = _group([*map(str, range(100)), "x" * 50_000])
    for symbol in symbols[:-1]:  # sorted by their names
        content[symbol : symbol + 8] = content[symbols[-1] : symbols[-1] + 8]
    return _finished(content)


def nested_groups():
    """Groups in each other, which take minutes to visit."""
    file = io.BytesIO()
    with h5py.File(file, "w") as opened:
        opened.create_group("/".join("a" * 1000))
    return file.getvalue()


def links_to_the_root():
    """A group of 10,000 links to itself, whose members are counted for each of them."""
    file = io.BytesIO()
    with h5py.File(file, "w") as opened:
        for index in range(10_000):
            opened[f"{index}"] = opened
    return file.getvalue()


MADE = (
    endless_names,
    nested_groups,
    links_to_the_root,
    tree_of_one_leaf,
    headers_with_one_tail,
    members_with_one_name,
)
