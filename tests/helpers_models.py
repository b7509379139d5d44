"""Model files made for tests: OPT from its checkpoint, and edited copies of other files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file

from powerinfer_py.gguf import GGMLType, GGUFWriter, ValueType, dequantize, open_gguf

FIXTURES = Path(__file__).parent / "fixtures"

OPT_LAYER_NAMES = {
    "self_attn_layer_norm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.out_proj": "attn_output",
    "final_layer_norm": "ffn_norm",
    "fc1": "ffn_up",
    "fc2": "ffn_down_t",
}


def write_opt(path: Path, predictors: bool = True, neurons_as_rows: bool = True) -> Path:
    """The checkpoint in fixtures/opt as a PWRI file, or with `neurons_as_rows` False as a dense GGUF."""
    checkpoint = load_file(FIXTURES / "opt" / "model.safetensors")
    tensors = {
        "token_embd.weight": checkpoint["model.decoder.embed_tokens.weight"],
        "position_embd.weight": checkpoint["model.decoder.embed_positions.weight"],
        "output_norm.weight": checkpoint["model.decoder.final_layer_norm.weight"],
        "output_norm.bias": checkpoint["model.decoder.final_layer_norm.bias"],
    }
    for layer in range(2):
        for theirs, ours in OPT_LAYER_NAMES.items():
            weight = checkpoint[f"model.decoder.layers.{layer}.{theirs}.weight"]
            if theirs == "fc2":
                ours = ours if neurons_as_rows else "ffn_down"
                weight = np.ascontiguousarray(weight.T) if neurons_as_rows else weight
            tensors[f"blk.{layer}.{ours}.weight"] = weight
            tensors[f"blk.{layer}.{ours}.bias"] = checkpoint[f"model.decoder.layers.{layer}.{theirs}.bias"]
        if predictors:
            tensors |= opt_predictor(layer)
    with GGUFWriter(path, "PWRI" if neurons_as_rows else "GGUF") as writer:
        for key, value in {"context_length": 256, "embedding_length": 64, "block_count": 2}.items():
            writer.add(f"opt.{key}", value, ValueType.UINT32)
        writer.add("general.architecture", "opt", ValueType.STRING)
        writer.add("opt.feed_forward_length", 1024, ValueType.UINT32)
        writer.add("opt.attention.head_count", 2, ValueType.UINT32)
        writer.add("opt.attention.layer_norm_epsilon", 1e-5, ValueType.FLOAT32)
        add_opt_vocabulary(writer)
        write_float_tensors(writer, tensors)
    return path


def opt_predictor(layer: int) -> dict[str, npt.NDArray[np.float16]]:
    """fc1 and fc2 of one layer."""
    import torch

    state = torch.load(FIXTURES / "opt-predictor" / f"model_{layer}.pt", weights_only=True, map_location="cpu")
    return {f"blk.{layer}.{name}": tensor.numpy() for name, tensor in state.items()}


def add_opt_vocabulary(writer: GGUFWriter) -> None:
    """Byte-level BPE of fixtures/opt."""
    import json

    vocabulary: dict[str, int] = json.loads((FIXTURES / "opt" / "vocab.json").read_text(encoding="utf-8"))
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    lines = (FIXTURES / "opt" / "merges.txt").read_text(encoding="utf-8").splitlines()
    merges = [line for line in lines if line and not line.startswith("#version")]
    writer.add("tokenizer.ggml.model", "gpt2", ValueType.STRING)
    writer.add("tokenizer.ggml.pre", "gpt-2", ValueType.STRING)
    writer.add("tokenizer.ggml.tokens", tokens, ValueType.ARRAY, ValueType.STRING)
    types = [3 if token == "<|endoftext|>" else 1 for token in tokens]
    writer.add("tokenizer.ggml.token_type", types, ValueType.ARRAY, ValueType.INT32)
    writer.add("tokenizer.ggml.merges", merges, ValueType.ARRAY, ValueType.STRING)
    writer.add("tokenizer.ggml.bos_token_id", 0, ValueType.UINT32)
    writer.add("tokenizer.ggml.eos_token_id", 0, ValueType.UINT32)


def write_float_tensors(writer: GGUFWriter, tensors: Mapping[str, npt.NDArray[np.floating]]) -> None:
    """Matrices keep F16 or F32, vectors become F32."""
    typed = {}
    for name, values in tensors.items():
        dtype = np.float16 if values.ndim == 2 and values.dtype == np.float16 else np.float32
        typed[name] = values.astype(dtype)
        writer.add_tensor(name, GGMLType.F16 if dtype is np.float16 else GGMLType.F32, values.shape)
    for name, values in typed.items():
        writer.write_tensor(name, values)


def write_arcee(path: Path) -> Path:
    """The recorded arcee model as a PWRI file: down projections a neuron a row, random predictors of rank 16."""
    rng = np.random.default_rng(7)
    with open_gguf(FIXTURES / "llama_cpp" / "arcee.gguf") as source, GGUFWriter(path, "PWRI") as writer:
        tensors = {}
        for name, info in source.tensors.items():
            rows, cols = (1, *info.shape)[-2:]
            values = dequantize(source.tensor_data(name), info.ggml_type, rows, cols).reshape(info.shape)
            if name.endswith("ffn_down.weight"):
                name, values = name.replace("ffn_down", "ffn_down_t"), np.ascontiguousarray(values.T)
                n_ff, n_embd = values.shape
                prefix = name.removesuffix("ffn_down_t.weight")
                tensors[prefix + "fc1.weight"] = rng.standard_normal((16, n_embd)).astype(np.float32)
                tensors[prefix + "fc2.weight"] = rng.standard_normal((n_ff, 16)).astype(np.float32)
            tensors[name] = values
        for entry in source.entries.values():
            writer.add_entry(entry)
        write_float_tensors(writer, tensors)
    return path


def edited_copy(
    source: Path,
    target: Path,
    edit: Callable[[str, npt.NDArray[np.uint8]], npt.NDArray[np.uint8]] | None = None,
    values: Mapping[str, tuple[object, ValueType]] | None = None,
    drop: Callable[[str], bool] = lambda _name: False,
) -> Path:
    """A copy of a model file: `edit(name, bytes)` may change tensors, `values` sets keys, `drop` omits tensors."""
    values = values or {}
    with open_gguf(source) as file, GGUFWriter(target, file.magic) as writer:
        for key, entry in file.entries.items():
            if key not in values:
                writer.add_entry(entry)
        for key, (value, value_type) in values.items():
            writer.add(key, value, value_type)  # type: ignore[arg-type]
        kept = [name for name in file.tensors if not drop(name)]
        for name in kept:
            writer.add_tensor(name, file.tensors[name].ggml_type, file.tensors[name].shape)
        for name in kept:
            data = file.tensor_data(name)
            writer.write_tensor(name, data if edit is None else edit(name, data.copy()))
    return target
