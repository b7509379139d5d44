"""GGUF and PWRI files that break the container: header, strings, values, alignment, tensor infos; and odd ones that do
not.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import helpers_gguf_bytes as b
from hostile.case import HostileCase, with_bytes


def case(clause: str, name: str, data: bytes | Callable[[], bytes], match: str) -> HostileCase:
    return HostileCase(clause, name, "gguf", with_bytes(data), match=match, has_place=True)


GOOD = b.gguf_bytes([b.string_entry("general.architecture", "llama")])


def scalar(value: bytes, type_id: int) -> bytes:
    return b.gguf_bytes([b.entry("k", type_id, value)])


def array(element_type: int, count: int, elements: bytes = b"") -> bytes:
    return b.gguf_bytes([b.array_entry("k", element_type, count, elements)])


def aligned(value: bytes, type_id: int = b.U32) -> bytes:
    return b.gguf_bytes([b.entry("general.alignment", type_id, value)], [b.info("t", (8,))], bytes(4096))


def tensor(dims: tuple[int, ...], type_id: int = 0, offset: int = 0, n_dims: int | None = None) -> bytes:
    return b.gguf_bytes([], [b.info("t", dims, type_id, offset, n_dims)], bytes(4096))


def pair(first: int, second: int, n_bytes: int = 256) -> bytes:
    """Two tensors of 32 bytes at these offsets."""
    return b.gguf_bytes([], [b.info("t", (8,), 0, first), b.info("u", (8,), 0, second)], bytes(n_bytes))


HEADER = [
    case("G Header", "empty file", b"", "empty file"),
    *(case("G Header", f"{n} bytes", b"GGUF"[:n], "truncated: the magic") for n in (1, 2, 3)),
    case("G Header", "magic only", b"GGUF", "truncated: the version"),
    case("G Header", "cut inside version", b"GGUF\x03\x00", "truncated: the version"),
    case("G Header", "cut inside tensor count", GOOD[:11], "truncated: tensor count"),
    case("G Header", "cut inside key count", GOOD[:19], "truncated: key-value count"),
    case("G Header", "wrong magic", b"GGML" + GOOD[4:], "not a GGUF or PWRI file"),
    case("G Header", "zip file", b"PK\x03\x04" + GOOD[4:], "not a GGUF or PWRI file"),
    case("G Header", "all zeros", bytes(4096), "not a GGUF or PWRI file"),
    *(
        case("G Header", f"version {v}", b.gguf_bytes(version=v), f"version {v}, expected 2 or 3")
        for v in (0, 1, 4, 2**32 - 1)
    ),
    case("G Header", "byte-swapped version", b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "byte-swapped"),
    case("G Header", "byte-swapped magic", b"FUGG" + struct.pack(">IQQ", 3, 0, 0), "byte-swapped"),
    *(
        case(
            "G Header",
            f"{what} count {label}",
            b.header(*(n if w == what else 0 for w in ("tensor", "key-value"))),
            f"{what} count",
        )
        for what in ("tensor", "key-value")
        for label, n in (
            ("2^64-1", 2**64 - 1),
            ("wrapping when multiplied", 2**64 // 14 + 1),
            ("2^63", 2**63),
            ("2^30", 2**30),
            ("1", 1),
        )
    ),
]

LENGTHS = (("2^64-1", 2**64 - 1), ("2^63", 2**63), ("2^64-8", 2**64 - 8), ("8 GiB", 8 << 30), ("one too long", 30))
STRINGS = [
    *(
        case("G Strings", f"key of {label}", b.header(0, 1) + b.text("key", n) + bytes(20), "truncated")
        for label, n in LENGTHS
    ),
    *(
        case("G Strings", f"value of {label}", scalar(b.text("value", n), b.STRING), "truncated")
        for label, n in LENGTHS[:4]
    ),
    *(
        case("G Strings", f"array string of {label}", array(b.STRING, 2, b.text("value") + b.text("x", n)), "truncated")
        for label, n in LENGTHS
    ),
    *(
        case("G Strings", f"tensor name of {label}", b.header(1, 0) + b.text("t", n) + bytes(24), "truncated")
        for label, n in LENGTHS
    ),
    case("G Strings", "key not UTF-8", b.gguf_bytes([b.string_entry(b"k\xff", "v")]), "metadata key is not UTF-8"),
    case("G Strings", "value not UTF-8", scalar(b.text(b"\xc3"), b.STRING), "value of k is not UTF-8"),
    case("G Strings", "overlong UTF-8", scalar(b.text(b"\xc0\x80"), b.STRING), "value of k is not UTF-8"),
    case("G Strings", "surrogate", scalar(b.text(b"\xed\xa0\x80"), b.STRING), "value of k is not UTF-8"),
    case(
        "G Strings",
        "array string not UTF-8",
        array(b.STRING, 2, b.text("a") + b.text(b"\x80")),
        "string 1 of value of k is not",
    ),
    case(
        "G Strings",
        "tensor name not UTF-8",
        b.gguf_bytes([], [b.info(b"\xfe", (8,))], bytes(32)),
        "tensor name is not UTF-8",
    ),
    case("G Strings", "key with NUL", b.gguf_bytes([b.string_entry("a\0b", "v")]), "control characters"),
    case("G Strings", "value with NUL", scalar(b.text("a\0b"), b.STRING), "NUL"),
    case(
        "G Strings", "tensor name with NUL", b.gguf_bytes([], [b.info("a\0b", (8,))], bytes(32)), "control characters"
    ),
    case("G Strings", "key with escape sequence", b.gguf_bytes([b.string_entry("\x1b[2J", "v")]), "control characters"),
    case(
        "G Strings",
        "tensor name with newline",
        b.gguf_bytes([], [b.info("a\nb", (8,))], bytes(32)),
        "control characters",
    ),
    case("G Strings", "empty key", b.gguf_bytes([b.string_entry("", "v")]), "empty metadata key"),
    case("G Strings", "key of 65536 bytes", b.gguf_bytes([b.string_entry("k" * 65536, "v")]), "more than 65535"),
    case("G Strings", "empty tensor name", b.gguf_bytes([], [b.info("", (8,))], bytes(64)), "tensor name of 0 bytes"),
    case(
        "G Strings",
        "tensor name of 64 bytes",
        b.gguf_bytes([], [b.info("t" * 64, (8,))], bytes(32)),
        "tensor name of 64 bytes",
    ),
    case(
        "G Strings",
        "tensor name of 100000 bytes",
        b.gguf_bytes([], [b.info("t" * 100000, (8,))], bytes(32)),
        "of 100000 bytes",
    ),
    case("G Strings", "duplicate key", b.gguf_bytes([b.string_entry("k", "v")] * 2), "key k occurs twice"),
    case(
        "G Strings", "duplicate tensor", b.gguf_bytes([], [b.info("t", (8,))] * 2, bytes(64)), "tensor t occurs twice"
    ),
]

VALUES = [
    *(
        case("G Values", f"value type {label}", scalar(bytes(64), n), f"value type of k is {n}, expected 0 to 12")
        for label, n in (("13", 13), ("-1", 2**32 - 1), ("2^31", 2**31))
    ),
    *(
        case("G Values", f"array of type {n}", array(n, 1, bytes(64)), f"is {n}, expected 0 to 12")
        for n in (13, 2**32 - 1)
    ),
    *(
        case(
            "G Values",
            f"arrays nested {depth} deep",
            lambda depth=depth: array(b.ARRAY, 1, struct.pack("<IQ", b.ARRAY, 1) * depth),
            "array of arrays",
        )
        for depth in (1, 500, 100000)
    ),
    case(
        "G Values",
        "a million empty sub-arrays",
        lambda: array(b.ARRAY, 10**6, struct.pack("<IQ", b.U8, 0) * 10**6),
        "array of arrays",
    ),
    *(
        case("G Values", f"array of {n} {name}", array(t, n), f"count is {n}")
        for name, t in (("strings", b.STRING), ("u8", b.U8), ("u32", b.U32), ("u64", b.U64), ("bool", b.BOOL))
        for n in (2**64 - 1, 2**61 + 1, 2**62, 2**28)
    ),
    case("G Values", "array one element short", array(b.U32, 3, bytes(8))[:57], "element in value of k: count is 3"),
    *(
        case("G Values", f"scalar of type {t} cut", b.header(0, 1) + b.entry("k", t, bytes(size - 1)), "truncated")
        for t, size in ((b.U16, 2), (b.U32, 4), (b.F64, 8), (b.STRING, 8))
    ),
]

ALIGNMENTS = [
    *(
        case(
            "G Alignment",
            f"alignment {n}",
            aligned(struct.pack("<I", n)),
            f"general.alignment is {n}, expected a power of two",
        )
        for n in (0, 3, 13, 2**31, 2**32 - 1)
    ),
    case("G Alignment", "alignment as u64", aligned(struct.pack("<Q", 32), b.U64), "is UINT64, expected UINT32"),
    case("G Alignment", "alignment as i32", aligned(struct.pack("<i", 32), b.I32), "is INT32, expected UINT32"),
    case("G Alignment", "alignment as f32", aligned(struct.pack("<f", 32), b.F32), "is FLOAT32, expected UINT32"),
    case("G Alignment", "alignment as string", aligned(b.text("32"), b.STRING), "is STRING, expected UINT32"),
    case(
        "G Alignment",
        "alignment as array",
        aligned(struct.pack("<IQI", b.U32, 1, 32), b.ARRAY),
        "is ARRAY of UINT32, expected UINT32",
    ),
]

HUGE = 1 << 62
TENSORS = [
    *(
        case("G Tensor infos", f"{label} dims", tensor((1,) * min(n, 5), n_dims=n), f"has {n} dims, expected 1 to 4")
        for label, n in (("0", 0), ("5", 5), ("2^28", 2**28), ("2^32-1", 2**32 - 1))
    ),
    case("G Tensor infos", "a dim of -1", tensor((-1,)), "exceed"),
    case("G Tensor infos", "a dim of 2^62", tensor((HUGE,)), "exceed"),
    case("G Tensor infos", "product wraps to 0", tensor((2**32, 2**32)), "exceed"),
    case("G Tensor infos", "product wraps to a small number", tensor((2**33, 2**31 + 1)), "exceed"),
    case("G Tensor infos", "four dims of 2^62", tensor((HUGE,) * 4), "exceed"),
    case("G Tensor infos", "a zero beside huge dims", tensor((HUGE, 0, HUGE)), "exceed"),
    case("G Tensor infos", "a zero and -1", tensor((0, -1)), "exceed"),
    case("G Tensor infos", "bytes wrap", tensor((2**61, 2)), "exceed"),
    case("G Tensor infos", "bytes beyond the file", tensor((2**39,)), "truncated: tensor t"),
    case("G Tensor infos", "padding wraps", tensor((2**64 - 16,), 24), "exceed"),
    *(
        case("G Tensor infos", f"removed type {n}", tensor((32,), n), f"unknown type {n}")
        for n in (4, 5, 31, 32, 33, 36)
    ),
    case("G Tensor infos", "type 1000", tensor((32,), 1000), "unknown type 1000"),
    case("G Tensor infos", "type -1", tensor((32,), -1), f"unknown type {2**32 - 1}"),
    case("G Tensor infos", "row no multiple of its block", tensor((33, 32), 2), "no multiple of the Q4_0 block of 32"),
    case("G Tensor infos", "row no multiple of a K block", tensor((32, 8), 12), "no multiple of the Q4_K block of 256"),
    case("G Tensor infos", "offset past the end", tensor((8,), offset=1 << 20), "leaves a hole"),
    case("G Tensor infos", "offset 2^63", tensor((8,), offset=2**63), "leaves a hole"),
    case("G Tensor infos", "offset 2^64-32", tensor((8,), offset=-32), "leaves a hole"),
    case("G Tensor infos", "unaligned offset", tensor((8,), offset=8), "no multiple of the alignment 32"),
    case("G Tensor infos", "overlapping", pair(0, 0), "overlaps the tensor before it"),
    case("G Tensor infos", "with a hole", pair(0, 64), "leaves a hole before it, expected 32"),
    case("G Tensor infos", "out of order", pair(32, 0), "expected 0"),
    case("G Tensor infos", "sum past the end", pair(0, 32, 32), "truncated: tensor u"),
    case("G Tensor infos", "data cut by one byte", pair(0, 32, 63), "truncated: tensor u"),
    case("G Tensor infos", "no data at all", pair(0, 32, 0), "truncated: tensor t"),
]


def accepted(data: bytes, name: str) -> HostileCase:
    return HostileCase("G Accept", name, "gguf", with_bytes(data), error=None)


ACCEPTED = [
    accepted(b.header(0, 0), "header with no tensors"),
    accepted(b.header(0, 0, version=2), "version 2"),
    accepted(b.header(0, 0, magic=b"PWRI"), "PWRI"),
    accepted(
        b.gguf_bytes(
            [b.entry("general.alignment", b.U32, struct.pack("<I", 1))],
            [b.info("t", (3,), 24, 0), b.info("u", (5,), 24, 3)],
            bytes(8),
            alignment=1,
        ),
        "alignment 1",
    ),
    accepted(b.gguf_bytes([], [b.info("t", (32, 0), 2), b.info("u", (8,))], bytes(32)), "zero-element tensor"),
    accepted(b.gguf_bytes([], [b.info("t", (0,))]), "only a zero-element tensor"),
    accepted(b.gguf_bytes([], [b.info("t", (1, 2, 3, 4))], bytes(96)), "four dims"),
    accepted(b.gguf_bytes([], [b.info("t" * 63, (8,))], bytes(32)), "tensor name of 63 bytes"),
    accepted(b.gguf_bytes([b.string_entry("k", "")]), "empty string value"),
    accepted(b.gguf_bytes([b.array_entry("k", b.STRING, 0)]), "empty array"),
    accepted(b.gguf_bytes([b.string_entry("k", "a\nb\tc")]), "value of several lines"),
    accepted(
        b.gguf_bytes([b.array_entry("k", b.STRING, 3, b.text("\0") + b.text("\n") + b.text(""))]),
        "tokens that are control characters",
    ),
    accepted(b.small_model(), "small model"),
    accepted(b.small_model(b"PWRI"), "small PWRI model"),
]


# Types that ggml knows and this package does not compute with: well-formed, refused by another error.
UNSUPPORTED = [
    HostileCase(
        "G Tensor infos", f"ggml type {n}", "gguf", with_bytes(tensor((256,), n)), "UnsupportedError", "not supp"
    )
    for n in (9, 15, 16, 18, 23, 29, 35, 39)
]


def hundred_key_values() -> bytes:
    """A hundred keys of random names, types and values."""
    rng = random.Random(5)
    entries = []
    for i in range(100):
        element = rng.choice([*b.SCALAR_BYTES])
        n = rng.randrange(100)
        entries.append(
            b.string_entry(f"key.{i}", "é" * rng.randrange(50))
            if i % 3 == 0
            else b.array_entry(f"key.{i}", element, n, rng.randbytes(n * b.SCALAR_BYTES[element]))
            if i % 3 == 1
            else b.entry(f"key.{i}", element, rng.randbytes(b.SCALAR_BYTES[element]))
        )
    return b.gguf_bytes(entries)


def large_vocabulary() -> bytes:
    """128,256 tokens and 280,147 merges, as Llama 3 has them: 8.8 MB that must be read in under a second."""
    tokens = b"".join(b.text(f"token {i}") for i in range(128_256))
    merges = b"".join(b.text(f"ab{i} cd{i}") for i in range(280_147))
    return b.gguf_bytes(
        [
            b.array_entry("tokenizer.ggml.tokens", b.STRING, 128_256, tokens),
            b.array_entry("tokenizer.ggml.merges", b.STRING, 280_147, merges),
        ]
    )


ACCEPTED += [
    HostileCase("G Accept", "a hundred random key-values", "gguf", with_bytes(hundred_key_values), error=None),
    HostileCase("G Accept", "a vocabulary of 128,256 tokens", "gguf", with_bytes(large_vocabulary), error=None),
    accepted(scalar(b"\x02", b.BOOL), "boolean 2"),
]


def as_powerinfer(hostile: HostileCase) -> HostileCase:
    """The same file with the other magic."""

    def build(folder: Path) -> Path:
        path = hostile.build(folder)
        data = path.read_bytes()
        path.write_bytes(b"PWRI" + data[4:])
        return path

    return replace(hostile, name=f"{hostile.name} (PWRI)", build=build)


PLAIN = [*HEADER, *STRINGS, *VALUES, *ALIGNMENTS, *TENSORS]
# What the header's cases break is before or in the magic.
CASES = [*PLAIN, *UNSUPPORTED, *ACCEPTED, *map(as_powerinfer, [*STRINGS, *VALUES, *ALIGNMENTS, *TENSORS])]
