"""The identity of a model file, cheap enough to be taken at every load.

It reads 8 KiB a tensor, so it tells models apart; it is no proof that every weight is unchanged.
"""

from __future__ import annotations

import hashlib

from powerinfer_py.gguf.reader import GGUFFile

SAMPLE_BYTES = 4096


def fingerprint(file: GGUFFile) -> str:
    """SHA-256 (64 hexadecimal digits) over what identifies the model.

    For each file of it in order: the bytes before its data section, padding included; its size as a little-endian u64;
    then, tensor by tensor in file order, the first and the last 4 KiB (of a smaller tensor: all of it, twice).
    Raises ValueError for a closed file.
    """
    if not file.shards:
        raise ValueError(f"{file.path}: the file is closed")
    digest = hashlib.sha256()
    for shard in file.shards:
        digest.update(shard.map[: shard.data_offset])
        digest.update(shard.n_bytes.to_bytes(8, "little"))
        for info in shard.tensors.values():
            sample = min(SAMPLE_BYTES, info.n_bytes)
            end = info.offset + info.n_bytes
            digest.update(shard.map[info.offset : info.offset + sample])
            digest.update(shard.map[end - sample : end])
    return digest.hexdigest()
