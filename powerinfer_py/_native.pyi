"""Types of the native extension (csrc/bindings.cpp).

Tensors are passed as addresses of contiguous memory: float32 unless said otherwise, 0 for an optional one that is
absent. Dtype, shape and contiguity are the caller's to check (kernels/cpu.py does); the extension refuses null
addresses, sizes that make no sense (ValueError) and indices out of range (IndexError). Every call releases the GIL.
"""

import numpy as np
import numpy.typing as npt

def available_isas() -> list[str]:
    """Instruction sets this CPU can run, best last; `scalar` is always among them."""

def report_file_faults() -> bool:
    """Ends the process with one line, rather than by SIGBUS, when a mapped file loses the bytes that are read.

    False where somebody else handles SIGBUS, whose handler stays.
    """

class Matrix:
    """Weights in the layout of a file's type; keeps `data` alive and reads it in place."""

    def __init__(self, data: npt.NDArray[np.uint8], type_id: int, rows: int, cols: int, packed: bool = False) -> None:
        """`data`: rows * row_bytes, one dimension, may be read-only; with `packed`, the `to_bytes` of a packed matrix.
        Raises ValueError for another size or type.
        """

    def to_bytes(self) -> bytes:
        """A copy of the rows in the order in which they are read."""

    @property
    def packed(self) -> bool:
        """Whether the rows were copied into another order (`CpuKernels.pack`)."""

    @property
    def rows(self) -> int: ...
    @property
    def cols(self) -> int: ...

class AttentionBlock:
    """Norm, attention and output projection of one layer. Keeps the matrices alive, not the norm and bias tensors."""

    def __init__(
        self,
        norm: tuple[int, int, float, bool],
        qkv: list[Matrix],
        qkv_biases: list[int],
        output: Matrix,
        output_bias: int,
        heads: tuple[int, int, int, int],
        scale: float,
    ) -> None:
        """norm: weight, bias or 0, epsilon, whether the mean is subtracted. qkv: one fused matrix or three.

        heads: n_head, n_head_kv, head_dim, head_dim_v. Raises ValueError for shapes that do not fit each other.
        """

class FeedForwardBlock:
    """Predictor, norm and FFN of one layer. Keeps the matrices alive, not the norm and bias tensors."""

    def __init__(
        self,
        norm: tuple[int, int, float, bool],
        gate: Matrix | None,
        gate_bias: int,
        up: Matrix,
        up_bias: int,
        down: Matrix,
        down_bias: int,
        down_is_transposed: bool,
        fc1: Matrix | None,
        fc2: Matrix | None,
        activation: int,
        fatrelu_threshold: float,
        sparse_threshold: float,
        dense: bool,
    ) -> None:
        """activation: relu, relu2, fatrelu, drelu, silu as 0 to 4. Raises ValueError for shapes that do not fit."""

class ColdWorker:
    """A thread that computes the jobs which host functions of a stream submit, one at a time."""

    def __init__(self) -> None: ...
    def wait(self) -> None:
        """Returns when the job submitted last is done."""

    def take_error(self) -> bool:
        """Whether a job has failed, or was submitted before the one before it was done, since the last call."""

class ColdJob:
    """A part of an FFN over buffers with fixed addresses. Keeps worker, kernels and block alive, not the buffers."""

    def __init__(
        self,
        worker: ColdWorker,
        kernels: CpuKernels,
        block: FeedForwardBlock,
        h: int,
        bits: int,
        y: int,
        n_tokens: int,
    ) -> None:
        """h, y (n_tokens, n_embd); bits (n_tokens, ceil(n_ff / 8); uint8), neuron j bit j % 8 of byte j // 8, or 0."""

    @property
    def address(self) -> int:
        """What the host functions are to be given."""

    def take_counts(self) -> tuple[int, int, int, int]:
        """Gate, up and down products and fired neurons since the last call."""

class ColdSequence:
    """Jobs of a step in order, each with the addresses of two flags of 32 bits: `begun`, which a device's stream raises
    when the job's input is there, and `done`, which it waits for. memory: what holds the flags. Keeps all of it alive
    until nobody follows it any more."""

    def __init__(
        self, follower: ColdFollower, jobs: list[ColdJob], flags: list[tuple[int, int]], memory: object
    ) -> None: ...

class ColdFollower:
    """A thread that computes the jobs of one step after the other as they are begun."""

    def __init__(self) -> None: ...
    def follow(self, sequence: ColdSequence) -> bool:
        """Lowers the flags of a step and follows it; False where the one before is not over."""

    def abandon(self) -> None:
        """Returns when no step is followed any more; jobs that have not begun never are."""

    def take_error(self) -> bool:
        """Whether a job has failed since the last call."""

def await_flag(flag: int, seconds: float) -> bool:
    """Waits until the flag at an address is raised, for at most so long; whether it is."""

def raise_flag(flag: int) -> None:
    """Writes 1 into the flag at an address, behind everything this thread has written."""

def cold_host_functions() -> tuple[int, int, int]:
    """Addresses of `void (*)(void* job)`: submit, which returns at once; wait, which sleeps; both in one.

    None of them throws, takes the GIL, or calls a device.
    """

class CpuKernels:
    """One set of kernels and the threads it owns. Calls from several threads take turns."""

    def __init__(self, isa: str | None, threads: int) -> None:
        """`isa` None: the best one. Raises ValueError for one this CPU lacks, and for threads outside 1 to 1024."""

    @property
    def isa(self) -> str: ...
    @property
    def threads(self) -> int: ...
    def pack(self, matrix: Matrix, /) -> Matrix:
        """A copy of a Q4_0, Q4_1, Q8_0, Q4_K or Q6_K matrix in the order that products like; only they accept it."""

    def copy(self, matrix: Matrix, /) -> Matrix:
        """A copy of a matrix in memory of its own, in huge pages where it is large."""

    def interleave(self, packed: list[Matrix], copied: list[Matrix], /) -> list[Matrix]:
        """Copies whose rows lie beside each other, row by row: of `packed` in the order of `pack`, of `copied` as they
        are. They keep one memory alive. Raises ValueError for matrices that differ in rows, or cannot be packed.
        """

    def quantise(self, values: int, n_weights: int, type_id: int, out: int, /) -> bool:
        """values (n_weights) as blocks into `out` (uint8), which has room for them.

        False where a value is not finite or too large for the type: what is in `out` is then not to be used.
        """

    def linear(self, matrix: Matrix, x: int, n_tokens: int, mask: int, bias: int, y: int, /) -> int:
        """x (n_tokens, cols), mask (n_tokens, rows; bool) or 0, bias (rows) or 0, y (n_tokens, rows).

        Returns the number of products computed.
        """

    def accumulate_rows(
        self, matrix: Matrix, coefficients: int, n_tokens: int, bias: int, all_rows: bool, y: int, /
    ) -> int:
        """coefficients (n_tokens, rows), bias (cols) or 0, y (n_tokens, cols). Returns the number of pairs added."""

    def rows(self, matrix: Matrix, ids: int, n: int, y: int, /) -> None:
        """ids (n; int64), y (n, cols)."""

    def fill_device_rows(
        self,
        data: int,
        n_stored: int,
        row_bytes: int,
        ids: int,
        n: int,
        n_blocks: int,
        quant_bytes: int,
        place: int,
        /,
    ) -> int:
        """Rows `ids` (int64; null: all) of n_stored rows into `place`: the quants of all, and behind them their scales.

        quant_bytes: of a block, behind its float16 scale; 0: rows are copied whole. Returns the bits of the largest
        magnitude of a finite scale. Raises ValueError for sizes that do not fit, IndexError for ids.
        """

    def rms_norm(self, x: int, weight: int, n_tokens: int, n: int, eps: float, y: int, /) -> None:
        """x, y (n_tokens, n), weight (n)."""

    def layer_norm(self, x: int, weight: int, bias: int, n_tokens: int, n: int, eps: float, y: int, /) -> None:
        """x, y (n_tokens, n), weight (n), bias (n) or 0."""

    def rope(
        self,
        x: int,
        positions: int,
        cos: int,
        sin: int,
        n_tokens: int,
        n_head: int,
        head_dim: int,
        n_rot: int,
        n_ctx: int,
        halves: bool,
        y: int,
        /,
    ) -> None:
        """x, y (n_tokens, n_head, head_dim), positions (n_tokens; int64), cos and sin (n_ctx, n_rot / 2)."""

    def attention(
        self,
        q: int,
        k: int,
        v: int,
        k_cache: int,
        v_cache: int,
        cache_types: tuple[int, int],
        slots: int,
        positions: int,
        n_tokens: int,
        n_head: int,
        n_head_kv: int,
        n_slots: int,
        n_ctx: int,
        head_dim: int,
        head_dim_v: int,
        scale: float,
        y: int,
        /,
    ) -> None:
        """Arrays as `Kernels.attention` has them; slots and positions int64.

        cache_types: weight types of the caches' rows, F16 or Q8_0; those of Q8_0 are whole blocks.
        """

    def attention_block(
        self,
        block: AttentionBlock,
        x: int,
        residual: int,
        y: int,
        k_cache: int,
        v_cache: int,
        cache_types: tuple[int, int],
        slots: int,
        positions: int,
        cos: int,
        sin: int,
        n_tokens: int,
        n_slots: int,
        n_ctx: int,
        n_rot: int,
        halves: bool,
        /,
    ) -> None:
        """x, residual, y (n_tokens, n_embd); the rest as in `attention` and `rope`; cos and sin 0 without RoPE."""

    def feed_forward_block(
        self, block: FeedForwardBlock, x: int, residual: int, y: int, predicted: int, fired: int, n_tokens: int, /
    ) -> tuple[int, int, int, int, float]:
        """x, residual, y (n_tokens, n_embd); predicted, fired (n_tokens, n_ff; bool) or 0.

        Returns gate, up and down products, neurons that fired, and seconds in the predictor.
        """

    def run_layers(
        self,
        attention: list[AttentionBlock],
        feed_forward: list[FeedForwardBlock],
        caches: list[tuple[int, int, int, int]],
        parallel: bool,
        x: int,
        y: int,
        slots: int,
        positions: int,
        cos: int,
        sin: int,
        n_rot: int,
        halves: bool,
        n_tokens: int,
        n_slots: int,
        n_ctx: int,
        counts: int,
        /,
    ) -> float:
        """x, y (n_tokens, n_embd), not the same; the rest as in `attention_block`.

        caches: of each layer the keys, the type of their rows, the values and theirs. counts (n_layers, 4; int64):
        gate, up and down products and neurons that fired. Returns seconds in the predictors.
        """

    def feed_forward_part(
        self, block: FeedForwardBlock, h: int, mask: int, y: int, fired: int, n_tokens: int, /
    ) -> tuple[int, int, int, int]:
        """h, y (n_tokens, n_embd); mask, fired (n_tokens, n_ff; bool) or 0. Gate, up and down products, and fired."""

    def predict(self, fc1: Matrix, fc2: Matrix, x: int, threshold: float, n_tokens: int, mask: int, /) -> None:
        """x (n_tokens, n_embd), mask (n_tokens, fc2.rows; bool)."""
