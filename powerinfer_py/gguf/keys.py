"""Names of the metadata keys and tensors that this project reads and writes. Names only: no values, no checks."""

from __future__ import annotations

ARCHITECTURE = "general.architecture"
NAME = "general.name"
FILE_TYPE = "general.file_type"
ALIGNMENT = "general.alignment"

SPLIT_COUNT = "split.count"
SPLIT_NO = "split.no"
SPLIT_TENSORS_COUNT = "split.tensors.count"

SPARSE_THRESHOLD = "powerinfer.sparse_threshold"
ACTIVATION = "powerinfer.activation"
FATRELU_THRESHOLD = "powerinfer.fatrelu_threshold"

# A gpuidx file: which neurons of each layer are on the GPU.
GPU_INDEX_ARCHITECTURE = "generic.gpu_index"
GPU_INDEX_BLOCK_COUNT = "generic.gpu_index.block_count"
VRAM_CAPACITY = "split.vram_capacity"
GPU_INDEX_FINGERPRINT = "powerinfer.gpuidx.model_fingerprint"
GPU_INDEX_ACTIVATION_HASH = "powerinfer.gpuidx.activation_hash"
GPU_INDEX_BUDGET_BYTES = "powerinfer.gpuidx.budget_bytes"
GPU_INDEX_RATES = "powerinfer.gpuidx.rates"
GPU_INDEX_GAP = "powerinfer.gpuidx.gap"
GPU_INDEX_BLOCKS = "powerinfer.gpuidx.blocks"
GPU_INDEX_HEAD = "powerinfer.gpuidx.head"
GPU_INDEX_PREFIX = "powerinfer.gpuidx."

TOKENIZER_MODEL = "tokenizer.ggml.model"
TOKENIZER_PRE = "tokenizer.ggml.pre"
TOKENIZER_TOKENS = "tokenizer.ggml.tokens"
TOKENIZER_SCORES = "tokenizer.ggml.scores"
TOKENIZER_TOKEN_TYPES = "tokenizer.ggml.token_type"
TOKENIZER_MERGES = "tokenizer.ggml.merges"
TOKENIZER_BOS_ID = "tokenizer.ggml.bos_token_id"
TOKENIZER_EOS_ID = "tokenizer.ggml.eos_token_id"
TOKENIZER_EOT_ID = "tokenizer.ggml.eot_token_id"
TOKENIZER_EOM_ID = "tokenizer.ggml.eom_token_id"
TOKENIZER_UNKNOWN_ID = "tokenizer.ggml.unknown_token_id"
TOKENIZER_SEPARATOR_ID = "tokenizer.ggml.seperator_token_id"  # spelt so in the specification
TOKENIZER_PADDING_ID = "tokenizer.ggml.padding_token_id"
TOKENIZER_ADD_BOS = "tokenizer.ggml.add_bos_token"
TOKENIZER_ADD_EOS = "tokenizer.ggml.add_eos_token"
TOKENIZER_ADD_SPACE_PREFIX = "tokenizer.ggml.add_space_prefix"
TOKENIZER_REMOVE_EXTRA_WHITESPACES = "tokenizer.ggml.remove_extra_whitespaces"
CHAT_TEMPLATE = "tokenizer.chat_template"

TOKEN_EMBEDDING = "token_embd.weight"
POSITION_EMBEDDING = "position_embd.weight"
OUTPUT = "output.weight"
OUTPUT_NORM = "output_norm.weight"
OUTPUT_NORM_BIAS = "output_norm.bias"
ROPE_FREQUENCIES = "rope_freqs.weight"

# Hyperparameters by their key without the architecture, see `architecture_key`.
CONTEXT_LENGTH = "context_length"
EMBEDDING_LENGTH = "embedding_length"
BLOCK_COUNT = "block_count"
FEED_FORWARD_LENGTH = "feed_forward_length"
VOCABULARY_SIZE = "vocab_size"
HEAD_COUNT = "attention.head_count"
HEAD_COUNT_KV = "attention.head_count_kv"
KEY_LENGTH = "attention.key_length"
VALUE_LENGTH = "attention.value_length"
LAYER_NORM_EPSILON = "attention.layer_norm_epsilon"
LAYER_NORM_RMS_EPSILON = "attention.layer_norm_rms_epsilon"
ROPE_DIMENSION_COUNT = "rope.dimension_count"
ROPE_FREQUENCY_BASE = "rope.freq_base"
ROPE_SCALING_TYPE = "rope.scaling.type"
ROPE_SCALING_FACTOR = "rope.scaling.factor"
ROPE_SCALING_ORIGINAL_CONTEXT = "rope.scaling.original_context_length"
ROPE_SCALING_ATTENTION_FACTOR = "rope.scaling.attn_factor"
ROPE_SCALE_LINEAR = "rope.scale_linear"
TENSOR_DATA_LAYOUT = "tensor_data_layout"


def architecture_key(architecture: str, suffix: str) -> str:
    """Key of a hyperparameter: `llama.block_count` for ("llama", BLOCK_COUNT)."""
    return f"{architecture}.{suffix}"


def block_tensor(layer: int, name: str) -> str:
    """Name of a tensor of a layer: `blk.3.ffn_up.weight` for (3, "ffn_up.weight")."""
    return f"blk.{layer}.{name}"


def gpu_idx(layer: int) -> str:
    """Tensor (n_ff; I32) of a gpuidx file: 1 where the neuron is on the GPU, else 0."""
    return block_tensor(layer, "gpu_idx")


def gpu_bucket(layer: int) -> str:
    """Tensor (k; I32) of a gpuidx file: ids of the layer's neurons on the GPU, ascending."""
    return block_tensor(layer, "gpu_bucket")
