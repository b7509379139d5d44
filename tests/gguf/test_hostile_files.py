"""Malformed files, one by one: each is refused by the one exception type, in under a second and under 64 MB."""

from __future__ import annotations

import os
import struct
import time
import tracemalloc
from pathlib import Path

import helpers_gguf_bytes as b
import pytest

from powerinfer_py.errors import FileFormatError, UnsupportedError
from powerinfer_py.gguf import open_gguf

MAX_S = 1.0
MAX_BYTES = 64 << 20
GOOD = b.gguf_bytes([b.string_entry("general.architecture", "llama")])


def case(name: str, data: bytes, match: str) -> object:
    return pytest.param(data, match, id=name)


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
    case("empty file", b"", "empty file"),
    *(case(f"{n} bytes", b"GGUF"[:n], "truncated: the magic") for n in (1, 2, 3)),
    case("magic only", b"GGUF", "truncated: the version"),
    case("cut inside version", b"GGUF\x03\x00", "truncated: the version"),
    case("cut inside tensor count", GOOD[:11], "truncated: tensor count"),
    case("cut inside key count", GOOD[:19], "truncated: key-value count"),
    case("wrong magic", b"GGML" + GOOD[4:], "not a GGUF or PWRI file"),
    case("zip file", b"PK\x03\x04" + GOOD[4:], "not a GGUF or PWRI file"),
    case("all zeros", bytes(4096), "not a GGUF or PWRI file"),
    *(case(f"version {v}", b.gguf_bytes(version=v), f"version {v}, expected 2 or 3") for v in (0, 1, 4, 2**32 - 1)),
    case("byte-swapped version", b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "byte-swapped"),
    case("byte-swapped magic", b"FUGG" + struct.pack(">IQQ", 3, 0, 0), "byte-swapped"),
    *(
        case(
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
    *(case(f"key of {label}", b.header(0, 1) + b.text("key", n) + bytes(20), "truncated") for label, n in LENGTHS),
    *(case(f"value of {label}", scalar(b.text("value", n), b.STRING), "truncated") for label, n in LENGTHS[:4]),
    *(
        case(f"array string of {label}", array(b.STRING, 2, b.text("value") + b.text("x", n)), "truncated")
        for label, n in LENGTHS
    ),
    *(
        case(f"tensor name of {label}", b.header(1, 0) + b.text("t", n) + bytes(24), "truncated")
        for label, n in LENGTHS
    ),
    case("key not UTF-8", b.gguf_bytes([b.string_entry(b"k\xff", "v")]), "metadata key is not UTF-8"),
    case("value not UTF-8", scalar(b.text(b"\xc3"), b.STRING), "value of k is not UTF-8"),
    case("overlong UTF-8", scalar(b.text(b"\xc0\x80"), b.STRING), "value of k is not UTF-8"),
    case("surrogate", scalar(b.text(b"\xed\xa0\x80"), b.STRING), "value of k is not UTF-8"),
    case("array string not UTF-8", array(b.STRING, 2, b.text("a") + b.text(b"\x80")), "string 1 of value of k is not"),
    case("tensor name not UTF-8", b.gguf_bytes([], [b.info(b"\xfe", (8,))], bytes(32)), "tensor name is not UTF-8"),
    case("key with NUL", b.gguf_bytes([b.string_entry("a\0b", "v")]), "control characters"),
    case("value with NUL", scalar(b.text("a\0b"), b.STRING), "NUL"),
    case("tensor name with NUL", b.gguf_bytes([], [b.info("a\0b", (8,))], bytes(32)), "control characters"),
    case("key with escape sequence", b.gguf_bytes([b.string_entry("\x1b[2J", "v")]), "control characters"),
    case("tensor name with newline", b.gguf_bytes([], [b.info("a\nb", (8,))], bytes(32)), "control characters"),
    case("empty key", b.gguf_bytes([b.string_entry("", "v")]), "empty metadata key"),
    case("key of 65536 bytes", b.gguf_bytes([b.string_entry("k" * 65536, "v")]), "more than 65535"),
    case("empty tensor name", b.gguf_bytes([], [b.info("", (8,))], bytes(64)), "tensor name of 0 bytes"),
    case("tensor name of 64 bytes", b.gguf_bytes([], [b.info("t" * 64, (8,))], bytes(32)), "tensor name of 64 bytes"),
    case("tensor name of 100000 bytes", b.gguf_bytes([], [b.info("t" * 100000, (8,))], bytes(32)), "of 100000 bytes"),
    case("duplicate key", b.gguf_bytes([b.string_entry("k", "v")] * 2), "key k occurs twice"),
    case("duplicate tensor", b.gguf_bytes([], [b.info("t", (8,))] * 2, bytes(64)), "tensor t occurs twice"),
]

VALUES = [
    *(
        case(f"value type {label}", scalar(bytes(64), n), f"value type of k is {n}, expected 0 to 12")
        for label, n in (("13", 13), ("-1", 2**32 - 1), ("2^31", 2**31))
    ),
    *(case(f"array of type {n}", array(n, 1, bytes(64)), f"is {n}, expected 0 to 12") for n in (13, 2**32 - 1)),
    *(
        case(
            f"arrays nested {depth} deep", array(b.ARRAY, 1, struct.pack("<IQ", b.ARRAY, 1) * depth), "array of arrays"
        )
        for depth in (1, 500, 100000)
    ),
    case("a million empty sub-arrays", array(b.ARRAY, 10**6, struct.pack("<IQ", b.U8, 0) * 10**6), "array of arrays"),
    *(
        case(f"array of {n} {name}", array(t, n), f"count is {n}")
        for name, t in (("strings", b.STRING), ("u8", b.U8), ("u32", b.U32), ("u64", b.U64), ("bool", b.BOOL))
        for n in (2**64 - 1, 2**61 + 1, 2**62, 2**28)
    ),
    case("array one element short", array(b.U32, 3, bytes(8))[:57], "element in value of k: count is 3"),
    *(
        case(f"scalar of type {t} cut", b.header(0, 1) + b.entry("k", t, bytes(size - 1)), "truncated")
        for t, size in ((b.U16, 2), (b.U32, 4), (b.F64, 8), (b.STRING, 8))
    ),
]

ALIGNMENTS = [
    *(
        case(f"alignment {n}", aligned(struct.pack("<I", n)), f"general.alignment is {n}, expected a power of two")
        for n in (0, 3, 13, 2**31, 2**32 - 1)
    ),
    case("alignment as u64", aligned(struct.pack("<Q", 32), b.U64), "is UINT64, expected UINT32"),
    case("alignment as i32", aligned(struct.pack("<i", 32), b.I32), "is INT32, expected UINT32"),
    case("alignment as f32", aligned(struct.pack("<f", 32), b.F32), "is FLOAT32, expected UINT32"),
    case("alignment as string", aligned(b.text("32"), b.STRING), "is STRING, expected UINT32"),
    case(
        "alignment as array", aligned(struct.pack("<IQI", b.U32, 1, 32), b.ARRAY), "is ARRAY of UINT32, expected UINT32"
    ),
]

HUGE = 1 << 62
TENSORS = [
    *(
        case(f"{label} dims", tensor((1,) * min(n, 5), n_dims=n), f"has {n} dims, expected 1 to 4")
        for label, n in (("0", 0), ("5", 5), ("2^28", 2**28), ("2^32-1", 2**32 - 1))
    ),
    case("a dim of -1", tensor((-1,)), "exceed"),
    case("a dim of 2^62", tensor((HUGE,)), "exceed"),
    case("product wraps to 0", tensor((2**32, 2**32)), "exceed"),
    case("product wraps to a small number", tensor((2**33, 2**31 + 1)), "exceed"),
    case("four dims of 2^62", tensor((HUGE,) * 4), "exceed"),
    case("a zero beside huge dims", tensor((HUGE, 0, HUGE)), "exceed"),
    case("a zero and -1", tensor((0, -1)), "exceed"),
    case("bytes wrap", tensor((2**61, 2)), "exceed"),
    case("bytes beyond the file", tensor((2**39,)), "truncated: tensor t"),
    case("padding wraps", tensor((2**64 - 16,), 24), "exceed"),
    *(case(f"removed type {n}", tensor((32,), n), f"unknown type {n}") for n in (4, 5, 31, 32, 33, 36)),
    case("type 1000", tensor((32,), 1000), "unknown type 1000"),
    case("type -1", tensor((32,), -1), f"unknown type {2**32 - 1}"),
    case("row no multiple of its block", tensor((33, 32), 2), "no multiple of the Q4_0 block of 32"),
    case("row no multiple of a K block", tensor((32, 8), 12), "no multiple of the Q4_K block of 256"),
    case("offset past the end", tensor((8,), offset=1 << 20), "leaves a hole"),
    case("offset 2^63", tensor((8,), offset=2**63), "leaves a hole"),
    case("offset 2^64-32", tensor((8,), offset=-32), "leaves a hole"),
    case("unaligned offset", tensor((8,), offset=8), "no multiple of the alignment 32"),
    case("overlapping", pair(0, 0), "overlaps the tensor before it"),
    case("with a hole", pair(0, 64), "leaves a hole before it, expected 32"),
    case("out of order", pair(32, 0), "expected 0"),
    case("sum past the end", pair(0, 32, 32), "truncated: tensor u"),
    case("data cut by one byte", pair(0, 32, 63), "truncated: tensor u"),
    case("no data at all", pair(0, 32, 0), "truncated: tensor t"),
]


@pytest.mark.parametrize(("data", "match"), [*HEADER, *STRINGS, *VALUES, *ALIGNMENTS, *TENSORS])
def test_refused(data: bytes, match: str, tmp_path: Path) -> None:
    path = tmp_path / "hostile.gguf"
    path.write_bytes(data)
    error = refuse(path, FileFormatError, match)
    assert isinstance(error, FileFormatError)
    assert error.path == path
    assert error.offset is not None
    assert 0 <= error.offset <= len(data)


@pytest.mark.parametrize("type_id", [9, 15, 16, 18, 23, 29, 35, 39], ids=lambda n: f"ggml type {n}")
def test_type_not_handled_is_unsupported(type_id: int, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(tensor((256,), type_id))
    refuse(path, UnsupportedError, "not supported")


def refuse(path: Path, kind: type[Exception], match: str) -> Exception:
    tracemalloc.start()
    try:
        start = time.perf_counter()
        with pytest.raises(kind, match=match) as caught:
            open_gguf(path)
        elapsed = time.perf_counter() - start
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert elapsed < MAX_S
    assert peak < MAX_BYTES
    message = str(caught.value)
    assert message.isprintable()
    assert len(message) < 600
    return caught.value


def test_no_file_names(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(GOOD)
    (tmp_path / "secret").chmod(0)
    for path, match in (
        ("", "no file name"),
        (tmp_path, "a directory"),
        (tmp_path / "absent", "No such file"),
        (tmp_path / "secret" / "below", "cannot open"),
        ("a\0b", "no possible file name"),
        ("/dev/zero", "not a regular file"),
    ):
        with pytest.raises(FileFormatError, match=match) as caught:
            open_gguf(path)
        assert str(caught.value).isprintable()


def test_named_pipe_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(FileFormatError, match="not a regular file"):
        open_gguf(tmp_path / "pipe")


ACCEPTED = [
    pytest.param(b.header(0, 0), id="header with no tensors"),
    pytest.param(b.header(0, 0, version=2), id="version 2"),
    pytest.param(b.header(0, 0, magic=b"PWRI"), id="PWRI"),
    pytest.param(
        b.gguf_bytes(
            [b.entry("general.alignment", b.U32, struct.pack("<I", 1))],
            [b.info("t", (3,), 24, 0), b.info("u", (5,), 24, 3)],
            bytes(8),
            alignment=1,
        ),
        id="alignment 1",
    ),
    pytest.param(b.gguf_bytes([], [b.info("t", (32, 0), 2), b.info("u", (8,))], bytes(32)), id="zero-element tensor"),
    pytest.param(b.gguf_bytes([], [b.info("t", (0,))]), id="only a zero-element tensor"),
    pytest.param(b.gguf_bytes([], [b.info("t", (1, 2, 3, 4))], bytes(96)), id="four dims"),
    pytest.param(b.gguf_bytes([], [b.info("t" * 63, (8,))], bytes(32)), id="tensor name of 63 bytes"),
    pytest.param(b.gguf_bytes([b.string_entry("k", "")]), id="empty string value"),
    pytest.param(b.gguf_bytes([b.array_entry("k", b.STRING, 0)]), id="empty array"),
    pytest.param(b.gguf_bytes([b.string_entry("k", "a\nb\tc")]), id="value of several lines"),
    pytest.param(
        b.gguf_bytes([b.array_entry("k", b.STRING, 3, b.text("\0") + b.text("\n") + b.text(""))]),
        id="tokens that are control characters",
    ),
    pytest.param(b.small_model(), id="small model"),
    pytest.param(b.small_model(b"PWRI"), id="small PWRI model"),
]


@pytest.mark.parametrize("data", ACCEPTED)
def test_accepted(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(data)
    with open_gguf(path) as file:
        for name, info in file.tensors.items():
            assert file.tensor_data(name).tobytes() == data[info.offset : info.offset + info.n_bytes]
