"""GGUF and PWRI files: reading that trusts nothing, writing that leaves nothing half done, dequantisation.

Nothing here knows a model's arithmetic. Importing it takes numpy and the standard library alone.
"""

from powerinfer_py.gguf.fingerprint import fingerprint
from powerinfer_py.gguf.metadata import MetadataEntry, MetadataValue, TypedMetadata
from powerinfer_py.gguf.quants import dequantize, dequantize_rows
from powerinfer_py.gguf.reader import GGUFFile, open_gguf
from powerinfer_py.gguf.shard import Shard
from powerinfer_py.gguf.tensors import TensorInfo
from powerinfer_py.gguf.types import BLOCK_LAYOUTS, PWRI_TYPE_IDS, WEIGHT_TYPES, GGMLType, ValueType, row_bytes
from powerinfer_py.gguf.writer import GGUFWriter

__all__ = [
    "BLOCK_LAYOUTS",
    "PWRI_TYPE_IDS",
    "WEIGHT_TYPES",
    "GGMLType",
    "GGUFFile",
    "GGUFWriter",
    "MetadataEntry",
    "MetadataValue",
    "Shard",
    "TensorInfo",
    "TypedMetadata",
    "ValueType",
    "dequantize",
    "dequantize_rows",
    "fingerprint",
    "open_gguf",
    "row_bytes",
]
