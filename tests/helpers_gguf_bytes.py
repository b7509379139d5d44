"""Builds the bytes of GGUF files piece by piece, right ones and wrong ones; independent of the package's own writer."""

from __future__ import annotations

import struct

U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 = range(13)
# Bytes of a value of each type whose values are all of one size.
SCALAR_BYTES = {U8: 1, I8: 1, U16: 2, I16: 2, U32: 4, I32: 4, F32: 4, BOOL: 1, U64: 8, I64: 8, F64: 8}
ALIGNMENT = 32


def text(content: str | bytes, length: int | None = None) -> bytes:
    """A string as files hold it; `length` overrides the true one."""
    data = content.encode() if isinstance(content, str) else content
    return struct.pack("<Q", len(data) if length is None else length) + data


def entry(key: str | bytes, type_id: int, value: bytes) -> bytes:
    """A key-value whose value is already encoded."""
    return text(key) + struct.pack("<I", type_id) + value


def string_entry(key: str | bytes, value: str | bytes) -> bytes:
    return entry(key, STRING, text(value))


def array_entry(key: str, element_type: int, count: int, elements: bytes = b"") -> bytes:
    return entry(key, ARRAY, struct.pack("<IQ", element_type, count) + elements)


def info(
    name: str | bytes, dims: tuple[int, ...], type_id: int = 0, offset: int = 0, n_dims: int | None = None
) -> bytes:
    """A tensor info; dims innermost first, as in the file."""
    shape = struct.pack(f"<{len(dims)}Q", *(dim % 2**64 for dim in dims))
    n_dims = len(dims) if n_dims is None else n_dims
    return text(name) + struct.pack("<I", n_dims) + shape + struct.pack("<IQ", type_id % 2**32, offset % 2**64)


def header(n_tensors: int, n_entries: int, magic: bytes = b"GGUF", version: int = 3) -> bytes:
    return magic + struct.pack("<IQQ", version, n_tensors, n_entries)


def gguf_bytes(
    entries: list[bytes] | None = None,
    infos: list[bytes] | None = None,
    data: bytes = b"",
    *,
    magic: bytes = b"GGUF",
    version: int = 3,
    alignment: int = ALIGNMENT,
) -> bytes:
    """A whole file; the data section begins at the next multiple of `alignment`."""
    entries, infos = entries or [], infos or []
    head = header(len(infos), len(entries), magic, version) + b"".join(entries) + b"".join(infos)
    return head + bytes(-len(head) % alignment) + data


def small_model(magic: bytes = b"GGUF") -> bytes:
    """About 8 KB: keys of every type and tensors of several, the last one a whole number of alignments."""
    entries = [
        string_entry("general.architecture", "llama"),
        *(entry(f"test.u{8 * n}", t, b"\x01" * n) for n, t in ((1, U8), (2, U16), (4, U32), (8, U64))),
        *(entry(f"test.i{8 * n}", t, b"\xff" * n) for n, t in ((1, I8), (2, I16), (4, I32), (8, I64))),
        entry("test.f32", F32, struct.pack("<f", 1.5)),
        entry("test.f64", F64, struct.pack("<d", -2.5)),
        entry("test.bool", BOOL, b"\x01"),
        array_entry("test.tokens", STRING, 40, b"".join(text(f"token{i}") for i in range(40))),
        array_entry("test.scores", F32, 40, struct.pack("<40f", *range(40))),
        array_entry("test.flags", BOOL, 5, b"\x00\x01\x02\x00\xff"),
    ]
    shapes = [("token_embd.weight", (32, 20), 0, 2560), ("blk.0.ffn_up.weight", (64, 32), 2, 1152)]
    shapes += [("blk.0.attn_norm.weight", (32,), 0, 128), ("output.weight", (32, 32), 1, 2048)]
    infos, offset = [], 0
    for name, dims, type_id, n_bytes in shapes:
        infos.append(info(name, dims, type_id, offset))
        offset += -(-n_bytes // ALIGNMENT) * ALIGNMENT
    return gguf_bytes(entries, infos, bytes(i * 7 % 251 for i in range(offset)), magic=magic)
