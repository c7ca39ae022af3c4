"""Checks the structures of an HDF5 file before the HDF5 library follows them, and reads its strings.

The library (1.14) loops over structures that refer to themselves, visits shared ones again and again, and
allocates any length of a string that a file states. The structures are described in HDF5's format
specification, sections II.A (superblock), III.A (B-trees) to III.E (global heap), and IV (object headers).
"""

import math
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from keras_resnet.errors import InputError

_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_UNDEFINED = 2**64 - 1  # an address
# Types of messages in object headers.
_LINK_INFO, _LINK, _LAYOUT, _ATTRIBUTE = 2, 6, 8, 12
_CONTINUATION, _SYMBOL_TABLE, _ATTRIBUTE_INFO = 16, 17, 21
_SHARED_MESSAGE = 2  # a flag: the content is elsewhere
_VIRTUAL = 3  # a layout
_SOFT_LINK = 2  # a type of symbols
_NO_FREE_BLOCK = 1
_DEEPEST = 32  # groups in each other; the library takes minutes to visit thousands
_SYMBOL = struct.Struct("<QQI20x")  # the offset of the name, the address of the header, the type
_REFERENCE = struct.Struct("<IQI")  # the length of a string, and the heap and the index of its bytes
_OBJECT = struct.Struct("<H6xQ")  # the index and the size of an object in a global heap


class Structures:
    """The checked structures of a file.

    Each is read once, and no more bytes in all than if no two of them share any. The formats are those that
    Keras writes, and small groups of newer formats. `check` and `strings` raise `ValueError`.
    """

    def __init__(self, path: Path):
        """Raises `InputError` if the file is not HDF5."""
        self._path = path
        self._attributes: dict[int, dict[bytes, bytes]] = {}  # messages by the address of the object
        # By the address of a heap and the index of an object: where it is, and its size.
        self._heaps: dict[int, dict[int, tuple[int, int]]] = {}
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            starts = (0, *(2**power for power in range(9, size.bit_length())))
            found = [start for start in starts if start + 8 <= size and _read(file, start, 8) == _SIGNATURE]
        if not found:
            raise InputError(f"{path} is not an HDF5 file")
        self._base = found[0]
        self._left = 4 * size  # bytes; strings may be read several times

    def check(self) -> None:
        """Checks all objects that can be reached from the root group."""
        with self._path.open("rb") as file:
            waiting, groups = [(self._root(file), 0)], set()
            while waiting:
                address, depth = waiting.pop()
                if address in groups or depth > _DEEPEST:
                    raise ValueError("a group has two names, or is too deep in others")
                if address in self._attributes:
                    continue
                self._attributes[address] = {}
                for kind, message in self._messages(file, address):
                    members = self._check_message(file, address, kind, message)
                    waiting += [(member, depth + 1) for member in members]
                    if kind in (_SYMBOL_TABLE, _LINK_INFO):
                        groups.add(address)

    def strings(self, address: int, name: str) -> list[bytes]:
        """Returns the strings of variable length in an attribute of the object at an address."""
        message = self._attributes.get(address, {}).get(name.encode())
        if message is None:
            raise ValueError(f"the attribute {name} is stored in an unknown way")
        with self._path.open("rb") as file:
            return [self._string(file, *reference) for reference in _references(message)]

    def _root(self, file: BinaryIO) -> int:
        """Returns the address of the root group's header."""
        content = _read(file, self._base, 100)
        is_old = content[8] < 2
        if content[13:15] != b"\x08\x08" if is_old else content[9:11] != b"\x08\x08":
            raise ValueError("its addresses or sizes do not have 64 bits")
        if not is_old:
            return struct.unpack_from("<Q", content, 36)[0]
        # Version 1 has 4 bytes more. The library may use a copy of the header's addresses instead of them.
        root, has_copy, copied = struct.unpack_from("<QI4x16s", content, 64 + 4 * content[8])
        messages = dict(self._messages(file, root))
        if has_copy == 1 and messages.get(_SYMBOL_TABLE, copied)[:16] != copied:
            raise ValueError("its root group is ambiguous")
        return root

    def _check_message(self, file: BinaryIO, address: int, kind: int, message: bytes) -> list[int]:
        """Checks a message of an object's header, and returns the addresses of other objects in it."""
        if kind == _SYMBOL_TABLE:
            return self._members(file, *struct.unpack_from("<QQ", message))
        if kind == _LINK:
            return _linked(message)
        if kind == _ATTRIBUTE:
            size, start = struct.unpack_from("<2xH", message)[0], 9 if message[0] == 3 else 8
            self._attributes[address][message[start : start + size].split(b"\0")[0]] = message
        if kind in (_LINK_INFO, _ATTRIBUTE_INFO):
            start = 2 + (message[1] & 1) * (8 if kind == _LINK_INFO else 2)
            if struct.unpack_from("<Q", message, start)[0] != _UNDEFINED:
                raise ValueError("it has large groups of a newer format than Keras'")
        if kind == _LAYOUT and message[0] >= 3 and message[1] == _VIRTUAL:
            raise ValueError("it has virtual datasets")
        return []

    def _messages(self, file: BinaryIO, address: int) -> Iterator[tuple[int, bytes]]:
        """Yields the type and the content of the messages in an object's header."""
        head = _read(file, self._base + address, 16)
        if is_old := head[0] == 1:
            chunks, layout = [(address + 16, struct.unpack_from("<I", head, 8)[0])], struct.Struct("<HHB3x")
        elif head[:5] == b"OHDR\x02":
            flags = head[5]
            start, width = 6 + 16 * (flags >> 5 & 1) + 4 * (flags >> 4 & 1), 1 << (flags & 3)
            size = int.from_bytes(_read(file, self._base + address + start, width), "little")
            chunks = [(address + start + width, size)]
            layout = struct.Struct("<BHB2x" if flags & 4 else "<BHB")
        else:
            raise ValueError("an object's header is invalid")
        for start, size in chunks:  # grows
            self._take(size + 16)
            chunk, position = _read(file, self._base + start, size), 0
            while position + layout.size <= size:
                kind, length, flags = layout.unpack_from(chunk, position)
                position += layout.size
                message = chunk[position : position + length]
                position += length
                if flags & _SHARED_MESSAGE:
                    raise ValueError("its objects share parts of their headers")
                if kind == _CONTINUATION:
                    following, length = struct.unpack_from("<QQ", message)
                    # Newer ones have a signature before the messages and a checksum after them.
                    chunks.append((following, length) if is_old else (following + 4, length - 8))
                else:
                    yield kind, message

    def _members(self, file: BinaryIO, tree: int, heap: int) -> list[int]:
        """Checks the tree and the names of a group, and returns the addresses of its members."""
        names = self._names(file, heap)
        waiting, seen, members = [tree], set(), []
        while waiting:
            address = waiting.pop()
            if address in seen:
                raise ValueError("a tree refers to a part of itself twice")
            seen.add(address)
            head = _read(file, self._base + address, 24)
            count = struct.unpack_from("<H", head, 6)[0]
            if head[:5] == b"TREE\0":
                self._take(16 * count)
                keys_and_children = _read(file, self._base + address + 24, 16 * count)
                waiting += struct.unpack(f"<{2 * count}Q", keys_and_children)[1::2]
            elif head[:5] == b"SNOD\1":
                self._take(_SYMBOL.size * count)
                symbols = _read(file, self._base + address + 8, _SYMBOL.size * count)
                members += self._headers(names, symbols)
            else:
                raise ValueError("a tree is invalid")
        return members

    def _headers(self, names: bytes, symbols: bytes) -> Iterator[int]:
        """Yields the addresses of the members in a node of a tree, and checks their names."""
        for name, header, kind in _SYMBOL.iter_unpack(symbols):
            self._take(names.index(b"\0", name) - name)
            if kind != _SOFT_LINK:
                yield header

    def _names(self, file: BinaryIO, heap: int) -> bytes:
        """Returns the content of a local heap; its free blocks must not be endless."""
        mark, size, free, start = struct.unpack("<5s3xQQQ", _read(file, self._base + heap, 32))
        if mark != b"HEAP\0":
            raise ValueError("a heap is invalid")
        self._take(size)
        content, seen = _read(file, self._base + start, size), set()
        while free != _NO_FREE_BLOCK:
            if free in seen or free >= size:
                raise ValueError("a heap of names is invalid")
            seen.add(free)
            free = struct.unpack_from("<Q", content, free)[0]
        return content

    def _string(self, file: BinaryIO, length: int, heap: int, index: int) -> bytes:
        if not length:
            return b""
        if heap not in self._heaps:
            self._heaps[heap] = dict(self._heap_objects(file, self._base + heap))
        start, size = self._heaps[heap].get(index, (0, 0))
        if size != length:
            raise ValueError("a string is not in its heap")
        self._take(size)
        return _read(file, start, size).split(b"\0")[0]

    def _heap_objects(self, file: BinaryIO, start: int) -> Iterator[tuple[int, tuple[int, int]]]:
        """Yields the index of each object in a global heap, and where it starts and its size."""
        mark, size = struct.unpack("<5s3xQ", _read(file, start, 16))
        if mark != b"GCOL\1":
            raise ValueError("a heap is invalid")
        self._take(size)
        content, position = _read(file, start, size), 16
        while position + _OBJECT.size <= len(content):
            index, size = _OBJECT.unpack_from(content, position)
            position += _OBJECT.size
            if index == 0 or size > len(content) - position:  # free space is at the end
                return
            yield index, (start + position, size)
            position += -(-size // 8) * 8

    def _take(self, size: int) -> None:
        self._left -= size
        if self._left < 0:
            raise ValueError("its structures overlap")


def _read(file: BinaryIO, start: int, size: int) -> bytes:
    """Returns bytes of a file; fewer at its end."""
    length = os.fstat(file.fileno()).st_size
    if not 0 <= start <= length or not 0 <= size <= length:
        raise ValueError("an address or a size is invalid")
    file.seek(start)
    return file.read(size)


def _linked(message: bytes) -> list[int]:
    """Returns the address in the message of a link, if it is a hard link."""
    flags, position = message[1], 2
    kind = message[position] if flags & 8 else 0
    position += (flags >> 3 & 1) + 8 * (flags >> 2 & 1) + (flags >> 4 & 1)
    width = 1 << (flags & 3)
    position += width + int.from_bytes(message[position : position + width], "little")
    return [] if kind else [struct.unpack_from("<Q", message, position)[0]]


def _references(message: bytes) -> Iterator[tuple[int, int, int]]:
    """Yields (length, heap, index) of the strings in the message of an attribute."""
    version, flags, *sizes = struct.unpack_from("<BB3H", message)
    if version not in (1, 2, 3) or (version > 1 and flags):
        raise ValueError("an attribute is stored in an unknown way")
    parts, position = [], 9 if version == 3 else 8
    for size in sizes:
        parts.append(message[position : position + size])
        position += -(-size // 8) * 8 if version == 1 else size
    _, datatype, space = parts
    # A string of variable length: class 9, type 1, size 16.
    if datatype[0] & 15 != 9 or datatype[1] & 15 != 1 or datatype[4:8] != b"\x10\0\0\0":
        raise ValueError("an attribute is not a string")
    rank, start = space[1], 8 if space[0] == 1 else 4
    count = math.prod(struct.unpack_from(f"<{rank}Q", space, start))
    if count * _REFERENCE.size > len(message) - position:
        raise ValueError("an attribute is too short")
    for index in range(count):
        yield _REFERENCE.unpack_from(message, position + index * _REFERENCE.size)
