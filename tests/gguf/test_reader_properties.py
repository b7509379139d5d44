"""Files cut at every byte and files changed at random: they open, or one kind of error says why not. Nothing else."""

from __future__ import annotations

import random
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
EXTREMES = (0, 1, 2**7, 2**8 - 1, 2**15, 2**16, 2**28, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**63 - 1, 2**63, 2**64 - 1)


def opens(path: Path) -> bool:
    """Whether the file opens; if so, all that it offers is read. Any other exception than the two fails the test."""
    start = time.process_time()
    try:
        with open_gguf(path) as file:
            for name in file.tensors:
                file.tensor_data(name).tobytes()
    except (FileFormatError, UnsupportedError) as error:
        assert str(error).isprintable()
        return False
    finally:
        assert time.process_time() - start < MAX_S
    return True


@pytest.mark.parametrize("magic", [b"GGUF", b"PWRI"])
def test_every_truncation_is_refused(magic: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    data = b.small_model(magic)
    assert 7000 < len(data) < 9000
    path.write_bytes(data)
    assert opens(path)
    with path.open("r+b") as stream:
        for length in reversed(range(len(data))):
            stream.truncate(length)
            assert not opens(path), f"opened after a cut at byte {length}"


def mutated(data: bytes, rng: random.Random) -> bytes:
    """One to four changes: flipped bits, extreme 32- and 64-bit values, insertions, deletions; mostly in the header."""
    out = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(out) if rng.random() < 0.2 else 1600)
        kind = rng.randrange(5)
        if kind == 0:
            out[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            out[at : at + 4] = struct.pack("<I", rng.choice(EXTREMES) % 2**32)
        elif kind == 2:
            out[at : at + 8] = struct.pack("<Q", rng.choice(EXTREMES))
        elif kind == 3:
            out[at:at] = rng.randbytes(rng.randint(1, 16))
        else:
            del out[at : at + rng.randint(1, 16)]
    return bytes(out)


def test_random_mutations(tmp_path: Path) -> None:
    rng = random.Random(20240611)
    path = tmp_path / "model.gguf"
    originals = (b.small_model(b"GGUF"), b.small_model(b"PWRI"))
    n_opened = 0
    for i in range(2000):
        path.write_bytes(mutated(originals[i % 2], rng))
        # Tracing makes opening four times slower; what one mutation in eight allocates shows what all do.
        if i % 8 == 0:
            tracemalloc.start()
        try:
            n_opened += opens(path)
            assert tracemalloc.get_traced_memory()[1] < MAX_BYTES
        finally:
            tracemalloc.stop()
    # Both outcomes occur, else the mutations test nothing.
    assert 50 < n_opened < 1950


def test_a_hundred_random_key_values(tmp_path: Path) -> None:
    rng = random.Random(5)
    entries = []
    for i in range(100):
        kind = rng.choice([*b.SCALAR_BYTES, b.STRING, b.ARRAY])
        if kind == b.STRING:
            entries.append(b.string_entry(f"key.{i}", "é" * rng.randrange(50)))
        elif kind == b.ARRAY:
            element, n = rng.choice(list(b.SCALAR_BYTES)), rng.randrange(100)
            entries.append(b.array_entry(f"key.{i}", element, n, rng.randbytes(n * b.SCALAR_BYTES[element])))
        else:
            entries.append(b.entry(f"key.{i}", kind, rng.randbytes(b.SCALAR_BYTES[kind])))
    path = tmp_path / "keys.gguf"
    path.write_bytes(b.gguf_bytes(entries))
    with open_gguf(path) as file:
        assert list(file.metadata) == [f"key.{i}" for i in range(100)]
        head = b.header(0, 100)
        for raw, parsed in zip(entries, file.entries.values(), strict=True):
            value = path.read_bytes()[parsed.offset : parsed.offset + parsed.n_bytes]
            assert raw.endswith(value)
            assert len(raw) == 8 + len(parsed.key) + 4 + len(value)
        assert len(head) + sum(map(len, entries)) == parsed.offset + parsed.n_bytes
