"""Every device byte of a model, from the tensor infos of its file and its hyperparameters. Reads no weights.

Invariant: the sizes are those of whole allocations, rounded as `device_bytes.aligned` does, so that their sum is what
a device holds. Vectors (norms, biases) are float32 on the device whatever they are in the file.
"""

from __future__ import annotations

from dataclasses import dataclass

from powerinfer_py.config import CacheType, ModelConfig, Sparsity
from powerinfer_py.errors import ModelError
from powerinfer_py.gguf import GGUFFile, TensorInfo, keys
from powerinfer_py.gguf.types import BLOCK_LAYOUTS, GGMLType, row_bytes
from powerinfer_py.placement.device_bytes import ALIGNMENT, FLOAT32_BYTES, aligned, device_type, matrix_bytes

# Tokens that the head is computed for at a time: 16 rows of logits of a 128k vocabulary are 8 MiB.
HEAD_TOKENS = 16
# Of cold neurons streamed to the device in one piece: long enough that the calls around it do not count, and twice that
# is little of any budget. A power of two, to which torch rounds page-locked memory.
BAND_BYTES = 16 << 20
# Up to so many tokens products go row by row, and attention is split over positions.
DECODE_TOKENS = 4
SPLIT_ATTENTION_TOKENS = 16
_PARTIAL_NEURONS = 64
_PARTIAL_POSITIONS = 128
_ROW_GROUP = 16
# Sums of prompts that are cut into parts take at most so many float32 a product, 8 MiB; there are at most so many
# parts, and so many results of a token in all of them: 512 tiles of 128.
_PARTIAL_SUMS = 1 << 21
_MOST_PARTS = 16
_PARTIAL_OUTPUTS = 1 << 16
_INT32_BYTES = 4
_INT64_BYTES = 8
# A matrix that has to be transposed for its rows to be neurons keeps these types; blocks of another cannot be turned.
_TURNABLE = (GGMLType.F32, GGMLType.F16, GGMLType.BF16)


@dataclass(frozen=True)
class LayerSizes:
    """One layer. dense_bytes: attention, norms, and the bias of the down projection. predictor_bytes: fc1 and fc2,
    0 where the mode does not run them. kv_bytes: keys and values of every slot.

    neuron_row_bytes: bytes of one neuron's row in each array that has one a neuron: gate, up, down, biases. gate_bytes:
    those read before it is known whether the neuron fires (gate, or up where there is no gate). neuron_multiple: the
    layer's neurons can only be parted in groups of so many consecutive ids, counted from id 0: a down projection that
    is not a neuron a row is cut between its quantisation blocks.
    """

    dense_bytes: int
    predictor_bytes: int
    kv_bytes: int
    neuron_row_bytes: tuple[int, ...]
    gate_bytes: int
    neuron_multiple: int = 1

    @property
    def block_bytes(self) -> int:
        """What goes to the device with the layer's block, before any neuron."""
        return self.dense_bytes + self.predictor_bytes + self.kv_bytes

    @property
    def neuron_bytes(self) -> int:
        """Bytes of one neuron's rows."""
        return sum(self.neuron_row_bytes)

    def hot_bytes(self, n_neurons: int) -> int:
        """Bytes on the device of `n_neurons` neurons of the layer, the rounding of each array included."""
        return sum(aligned(n_neurons * row) for row in self.neuron_row_bytes)


@dataclass(frozen=True)
class ModelSizes:
    """A whole model. head_bytes: final norm and output matrix. rope_bytes: cosines and sines of every position, once
    for all layers. predictor_rank: the largest.
    """

    config: ModelConfig
    n_ctx: int
    n_slots: int
    layers: tuple[LayerSizes, ...]
    head_bytes: int
    rope_bytes: int
    predictor_rank: int


def model_sizes(
    file: GGUFFile,
    config: ModelConfig,
    *,
    sparsity: Sparsity,
    n_ctx: int,
    n_slots: int = 1,
    cache_type_k: CacheType = CacheType.F16,
    cache_type_v: CacheType = CacheType.F16,
) -> ModelSizes:
    """Sizes of the model in `file` for a resolved sparsity mode and KV cache. Raises ModelError for missing tensors."""
    row = (
        row_bytes(GGMLType[cache_type_k.name], config.head_dim),
        row_bytes(GGMLType[cache_type_v.name], config.head_dim_v),
    )
    kv_bytes = sum(aligned(n_slots * config.n_head_kv * n_ctx * n) for n in row)
    ranks = [
        info.shape[0]
        for layer in range(config.n_layer)
        if (info := file.tensors.get(keys.block_tensor(layer, "fc1.weight"))) is not None
    ]
    head = keys.OUTPUT if keys.OUTPUT in file.tensors else keys.TOKEN_EMBEDDING
    head_names = [name for name in (head, keys.OUTPUT_NORM, keys.OUTPUT_NORM_BIAS) if name in file.tensors]
    n_rot = 0 if config.rope is None else config.rope.n_rot
    grouped = _by_layer(file, config.n_layer)
    return ModelSizes(
        config=config,
        n_ctx=n_ctx,
        n_slots=n_slots,
        layers=tuple(_layer_sizes(i, tensors, sparsity, kv_bytes) for i, tensors in enumerate(grouped)),
        head_bytes=sum(_tensor_bytes(file.tensors[name]) for name in head_names),
        rope_bytes=2 * aligned(n_ctx * (n_rot // 2) * FLOAT32_BYTES),
        predictor_rank=max(ranks, default=0) if sparsity is Sparsity.PREDICTOR else 0,
    )


def workspace_bytes(sizes: ModelSizes, n_tokens: int, *, head_on_gpu: bool) -> int:
    """Bytes of the intermediate tensors of forwards over up to `n_tokens` tokens, each in a place of its own.

    float32 unless said: residual stream twice, normed input, q, k and v before and after rotation, mixed heads; gate,
    up and hidden values of every neuron, predictor's inner values and scores, mask (a byte a neuron, then a bit), ids
    (int32) and their count a token; hot and cold parts; positions and slots (int64); what the kernels keep besides
    (`_kernel_bytes`); logits of at most `HEAD_TOKENS` tokens.
    """
    # Fewer tokens take other kernels, or have their sums cut, and may keep more.
    limits = [DECODE_TOKENS, SPLIT_ATTENTION_TOKENS, *(_PARTIAL_SUMS // (2 * n) for _, n in _products(sizes) if n)]
    counts = {n_tokens, *(min(n_tokens, limit) for limit in limits if limit)}
    needed = max(_forward_bytes(sizes, count) for count in counts)
    if not head_on_gpu:
        return needed
    n_head_tokens = min(n_tokens, HEAD_TOKENS)
    n_vocab = sizes.config.n_vocab
    logits = aligned(n_head_tokens * n_vocab * FLOAT32_BYTES)
    return needed + logits + _halves(sizes.config.n_embd, n_head_tokens) + _partial_sums(n_vocab, n_head_tokens)


def _forward_bytes(sizes: ModelSizes, n_tokens: int) -> int:
    config, f32 = sizes.config, FLOAT32_BYTES
    n_ff = _padded(config.n_ff)
    qkv = (config.n_head + config.n_head_kv) * config.head_dim + config.n_head_kv * config.head_dim_v
    per_token = [
        *[config.n_embd * f32] * 5,
        *[qkv * f32] * 2,
        config.n_head * config.head_dim_v * f32,
        *[n_ff * f32] * 3,
        *([sizes.predictor_rank * f32, config.n_ff * f32] if sizes.predictor_rank else []),
        config.n_ff,
        -(-config.n_ff // 8),
        config.n_ff * _INT32_BYTES,
        _INT32_BYTES,
        *[_INT64_BYTES] * 2,
    ]
    return sum(aligned(n_tokens * n_bytes) for n_bytes in per_token) + _kernel_bytes(sizes, n_tokens)


def _kernel_bytes(sizes: ModelSizes, n_tokens: int) -> int:
    """What device kernels keep while they run. Few tokens: partial sums of the down projection (a row and a count for
    every 64 neurons), counters for pairs of neurons. More: the input of each product as two float16 halves and a scale
    a token, its sums where they are cut into parts, and the neurons that any token needs. Attention of few tokens keeps
    a part for every 128 positions.
    """
    config, f32 = sizes.config, FLOAT32_BYTES
    if n_tokens <= DECODE_TOKENS:
        n_partial = n_tokens * -(-config.n_ff // _PARTIAL_NEURONS)
        n_bytes = aligned(n_partial * config.n_embd * f32) + aligned(n_partial * _INT32_BYTES)
        n_bytes += aligned(n_tokens * -(-config.n_ff // 2) * 3 * _INT32_BYTES)
    else:
        n_bytes = sum(_halves(n_in, n_tokens) + _partial_sums(n_out, n_tokens) for n_in, n_out in _products(sizes))
        n_bytes += aligned(config.n_ff * _INT32_BYTES) + aligned(config.n_ff) + aligned(_INT32_BYTES)
    if n_tokens <= SPLIT_ATTENTION_TOKENS:
        n_parts = n_tokens * config.n_head * -(-sizes.n_ctx // _PARTIAL_POSITIONS)
        return n_bytes + aligned(n_parts * config.head_dim_v * f32) + aligned(n_parts * 2 * f32)
    return n_bytes + _halves(config.n_head * config.head_dim, n_tokens)


def _products(sizes: ModelSizes) -> list[tuple[int, int]]:
    """Numbers that go into each product of a prompt for a token, and that come out. Sums of gate and up are not cut;
    those of the down projection are kept of hot and of cold neurons."""
    config = sizes.config
    n_heads = config.n_head * config.head_dim_v
    outputs = [
        config.n_head * config.head_dim,
        config.n_head_kv * config.head_dim,
        config.n_head_kv * config.head_dim_v,
    ]
    products = [(config.n_embd, n) for n in outputs]
    products += [(n_heads, config.n_embd), (config.n_embd, 0), (_padded(config.n_ff), config.n_embd)]
    products += [(0, config.n_embd)]
    if sizes.predictor_rank:
        products += [(config.n_embd, sizes.predictor_rank), (sizes.predictor_rank, config.n_ff)]
    return products


def _partial_sums(n_out: int, n_tokens: int) -> int:
    """The most that parts of the sums of one product take with so many tokens, whether or not they are cut."""
    if most_parts(n_tokens, n_out) == 1:
        return 0
    return aligned(min(_PARTIAL_SUMS, most_parts(1, n_out) * n_tokens * n_out) * FLOAT32_BYTES)


def _padded(n: int) -> int:
    """Values of neurons as their rows lie apart."""
    return -(-n // _ROW_GROUP) * _ROW_GROUP


def _halves(n_in: int, n_tokens: int) -> int:
    return 2 * aligned(n_tokens * n_in * 2) + aligned(n_tokens * FLOAT32_BYTES)


def most_parts(n_tokens: int, outputs: int) -> int:
    """How many parts the sums of a product of `n_tokens` tokens with `outputs` results each may be cut into."""
    outputs = max(1, outputs)
    return max(1, min(_MOST_PARTS, _PARTIAL_OUTPUTS // outputs, _PARTIAL_SUMS // (max(1, n_tokens) * outputs)))


def staging_bytes(sizes: ModelSizes, n_tokens: int) -> int:
    """Where the CPU's partial sum (float32) arrives, and two bands of cold neurons for prompts.

    What goes down is copied from where it was computed.
    """
    return aligned(n_tokens * sizes.config.n_embd * FLOAT32_BYTES) + 2 * band_bytes(sizes)


def band_neurons(sizes: ModelSizes) -> int:
    """Neurons that a prompt streams to the device at a time, in whole groups: as many as fit into `BAND_BYTES`, at most
    an eighth of a layer, but one group at least."""
    widest = max(layer.neuron_bytes for layer in sizes.layers)
    multiple = max(layer.neuron_multiple for layer in sizes.layers)
    # Each array is rounded up once.
    room = (
        BAND_BYTES - _band_vector_bytes(sizes) - max(len(layer.neuron_row_bytes) for layer in sizes.layers) * ALIGNMENT
    )
    wanted = min(room // widest, sizes.config.n_ff // 8)
    return min(sizes.config.n_ff, max(1, wanted // multiple) * multiple)


def band_bytes(sizes: ModelSizes) -> int:
    """Bytes of one band, with the vectors that its block is made with."""
    n = band_neurons(sizes)
    return _band_vector_bytes(sizes) + max(layer.hot_bytes(n) for layer in sizes.layers)


def _band_vector_bytes(sizes: ModelSizes) -> int:
    """A norm's weight and bias, and the bias of the down projection."""
    return 3 * aligned(sizes.config.n_embd * FLOAT32_BYTES)


def _by_layer(file: GGUFFile, n_layer: int) -> list[dict[str, TensorInfo]]:
    """Tensors of each layer by their name within it."""
    layers: list[dict[str, TensorInfo]] = [{} for _ in range(n_layer)]
    for name, info in file.tensors.items():
        parts = name.split(".", 2)
        if len(parts) == 3 and parts[0] == "blk" and parts[1].isascii() and parts[1].isdigit():
            layer = int(parts[1])
            if layer < n_layer:
                layers[layer][parts[2]] = info
    return layers


def _layer_sizes(layer: int, tensors: dict[str, TensorInfo], sparsity: Sparsity, kv_bytes: int) -> LayerSizes:
    dense = predictor = 0
    for name, tensor in tensors.items():
        if name in ("fc1.weight", "fc2.weight"):
            predictor += _tensor_bytes(tensor) if sparsity is Sparsity.PREDICTOR else 0
        elif name in ("ffn_down.bias", "ffn_down_t.bias") or (
            name.startswith(("attn_", "ffn_norm")) and name != "attn_rot_embd.weight"
        ):
            dense += _tensor_bytes(tensor)
    down, multiple = _down_row_bytes(layer, tensors, sparsity)
    up = [
        matrix_bytes(info.ggml_type, 1, info.shape[-1])
        for name in ("ffn_gate.weight", "ffn_up.weight")
        if (info := tensors.get(name)) is not None
    ]
    if "ffn_up.weight" not in tensors:
        raise ModelError(f"tensor {keys.block_tensor(layer, 'ffn_up.weight')} is missing")
    biases = [FLOAT32_BYTES for name in ("ffn_gate.bias", "ffn_up.bias") if name in tensors]
    return LayerSizes(dense, predictor, kv_bytes, (*up, down, *biases), gate_bytes=up[0], neuron_multiple=multiple)


def _down_row_bytes(layer: int, tensors: dict[str, TensorInfo], sparsity: Sparsity) -> tuple[int, int]:
    """Bytes of the down projection a neuron, and how many neurons cannot be parted."""
    if (rows := tensors.get("ffn_down_t.weight")) is not None:
        return matrix_bytes(rows.ggml_type, 1, rows.shape[-1]), 1
    columns = tensors.get("ffn_down.weight")
    if columns is None:
        raise ModelError(f"tensor {keys.block_tensor(layer, 'ffn_down_t.weight')} is missing")
    n_embd = columns.shape[0]
    if sparsity is not Sparsity.DENSE:
        return matrix_bytes(columns.ggml_type if columns.ggml_type in _TURNABLE else GGMLType.F16, 1, n_embd), 1
    stored, held = BLOCK_LAYOUTS[columns.ggml_type], BLOCK_LAYOUTS[device_type(columns.ggml_type)]
    return -(-n_embd * held.n_bytes // held.n_weights), stored.n_weights


def _tensor_bytes(info: TensorInfo) -> int:
    """A whole tensor as one allocation; a vector is float32."""
    if len(info.shape) == 1:
        return aligned(info.shape[0] * FLOAT32_BYTES)
    rows = info.n_weights // max(info.shape[-1], 1)
    return aligned(rows * row_bytes(device_type(info.ggml_type), info.shape[-1]))
