// What an operation works on, as plain structs of pointers and sizes: no Python, no ownership, no checks.
// Whoever fills a job (the bindings, later a host function of a GPU stream) has checked it and keeps its memory alive.
// Arrays are row-major and contiguous; the meaning of every operation stands in powerinfer_py/kernels/interface.py.
#pragma once

#include <cstdint>

namespace powerinfer {

// Ids are those of GGUF files (powerinfer_py/gguf/types.py).
enum class WeightType : int32_t {
    F32 = 0,
    F16 = 1,
    Q4_0 = 2,
    Q4_1 = 3,
    Q5_0 = 6,
    Q5_1 = 7,
    Q8_0 = 8,
    Q2_K = 10,
    Q3_K = 11,
    Q4_K = 12,
    Q5_K = 13,
    Q6_K = 14,
    BF16 = 30,
};

// Row r starts at data + r * row_bytes, at any alignment: quantised rows in a mapped file are even-aligned at best.
struct WeightMatrix {
    const uint8_t* data;
    WeightType type;
    int64_t rows;
    int64_t cols;
    int64_t row_bytes;
    bool packed = false;  // rows are in the order of isa/packed_rows.hpp (Q4_0, Q4_1, Q5_0, Q5_1, Q8_0 and Q6_K alone)
};

// The order of a token's values for the packed rows that they meet (isa/packed_rows.hpp): of Q6_K, or of all others.
enum class TokenOrder : int32_t { of_32, of_256 };

inline constexpr TokenOrder token_order(WeightType type) {
    return type == WeightType::Q6_K ? TokenOrder::of_256 : TokenOrder::of_32;
}

// What the rows of a stored matrix are once packed: Q4_K becomes Q4_1, Q5_K Q5_1. Without a packed order, itself.
inline constexpr WeightMatrix packed_form(WeightMatrix matrix) {
    switch (matrix.type) {
        case WeightType::Q4_K:
            matrix.type = WeightType::Q4_1;
            matrix.row_bytes = matrix.cols / 32 * 20;
            break;
        case WeightType::Q5_K:
            matrix.type = WeightType::Q5_1;
            matrix.row_bytes = matrix.cols / 32 * 24;
            break;
        case WeightType::Q4_0:
        case WeightType::Q4_1:
        case WeightType::Q5_0:
        case WeightType::Q5_1:
        case WeightType::Q8_0:
        case WeightType::Q6_K: break;
        default: return matrix;
    }
    matrix.packed = true;
    return matrix;
}

// Tokens in 8 bits, which packed rows are multiplied by; null elsewhere. Filled by linear() itself. There are cols / 32
// lanes a token, in the order of 256 cols / 16.
struct QuantisedTokens {
    const int8_t* q = nullptr;               // (n_tokens, cols)
    const float* scales = nullptr;           // (n_tokens, cols / 32)
    const int32_t* negative_sums = nullptr;  // (n_tokens, lanes): -(sum of q)
    const float* sums = nullptr;             // (n_tokens, lanes): scale times the sum of q
    TokenOrder order = TokenOrder::of_32;
};

// What fills them; n values a token.
struct TokensJob {
    const float* x;
    int64_t n;
    TokenOrder order;
    int8_t* q;
    float* scales;
    int32_t* negative_sums;
    float* sums;
};

struct LinearJob {
    WeightMatrix matrix;
    const float* x;       // (n_tokens, cols)
    const float* bias;    // (rows) or null
    const uint8_t* mask;  // (n_tokens, rows), or null for every product
    float* y;             // (n_tokens, rows)
    int64_t n_tokens;
    QuantisedTokens quantised = {};
    const float* striped = nullptr;  // x once more, (cols / kStripeCols, rounded up, n_tokens, kStripeCols), where wanted
};

inline constexpr int64_t kStripeCols = 64;

// kFewTokens meet many rows at once (isa/products.hpp). A copy of the tokens in stripes is paid back by more than 12: 9 take
// 1.2 times as long that way, 12 as long, 16 0.9 times, and 64 0.75 times (F16, Zen 3).
inline constexpr int kFewTokens = 8, kUnstripedTokens = 12;
// K-quants under a mask are not worth unpacking but whole.
inline constexpr bool wants_stripes(const LinearJob& job) {
    const bool has_small_blocks = job.matrix.type < WeightType::Q2_K || job.matrix.type == WeightType::BF16;
    return !job.matrix.packed && job.n_tokens > kUnstripedTokens && (!job.mask || has_small_blocks);
}

struct AccumulateJob {
    WeightMatrix matrix;
    const float* coefficients;  // (n_tokens, rows)
    const float* bias;          // (cols) or null
    float* y;                   // (n_tokens, cols)
    int64_t n_tokens;
    bool all_rows;
};

struct RowsJob {
    WeightMatrix matrix;
    const int64_t* ids;  // (n)
    float* y;            // (n, cols)
    int64_t n;
};

struct NormJob {
    const float* x;       // (n_tokens, n)
    const float* weight;  // (n)
    const float* bias;    // (n) or null
    float* y;             // (n_tokens, n)
    int64_t n_tokens;
    int64_t n;
    float eps;
    bool subtract_mean;  // LayerNorm, else RMSNorm
};

struct RopeJob {
    const float* x;            // (n_tokens, n_head, head_dim)
    const int64_t* positions;  // (n_tokens)
    const float* cos;          // (n_ctx, n_rot / 2)
    const float* sin;          // (n_ctx, n_rot / 2)
    float* y;                  // (n_tokens, n_head, head_dim)
    int64_t n_tokens;
    int64_t n_head;
    int64_t head_dim;
    int64_t n_rot;
    bool halves;
};

// Keys or values of a layer, (n_slots, n_head_kv, n_ctx) rows: a head's at one position, in F16 or in Q8_0 blocks.
struct CacheRows {
    uint8_t* data;
    WeightType type;
    int64_t row_bytes;
};

inline constexpr CacheRows cache_rows(uint8_t* data, WeightType type, int64_t dim) {
    return {data, type, type == WeightType::Q8_0 ? dim / 32 * 34 : 2 * dim};
}

struct AttentionJob {
    const float* q;            // (n_tokens, n_head, head_dim)
    const float* k;            // (n_tokens, n_head_kv, head_dim)
    const float* v;            // (n_tokens, n_head_kv, head_dim_v)
    CacheRows k_cache;         // of head_dim values
    CacheRows v_cache;         // of head_dim_v values
    const int64_t* slots;      // (n_tokens)
    const int64_t* positions;  // (n_tokens)
    float* y;                  // (n_tokens, n_head, head_dim_v)
    int64_t n_tokens;
    int64_t n_head;
    int64_t n_head_kv;
    int64_t n_ctx;
    int64_t head_dim;
    int64_t head_dim_v;
    float scale;
};

enum class Activation : int32_t { relu, relu2, fatrelu, drelu, silu };

// The elements between an FFN's products, flat over (n_tokens, n_ff).
struct HiddenJob {
    const float* first;   // products of the rows read first: the gate, or up without a gate
    const float* up;      // products of the up rows behind a gate, or null
    const uint8_t* mask;  // neurons that were to be computed, or null for all
    uint8_t* fired;
    float* hidden;
    Activation activation;
    float fatrelu_threshold;
};

// The FFN of one token over the neurons of a mask, all of its matrices in one pass: a neuron's gate row, then its up row
// if it fired, then its down row. Gate and up rows are packed.
struct NeuronsJob {
    LinearJob first;     // gate rows, or up rows without a gate; mask and y are not used
    LinearJob second;    // up rows behind a gate, or null data
    AccumulateJob down;  // its coefficients are not used
    const uint8_t* mask;  // (n_ff)
    const float* values;  // (n_ff): products of the gate that have been made; `first` is then null data
    uint8_t* fired;       // (n_ff)
    Activation activation;
    float fatrelu_threshold;
};

// Products of first and second rows, down rows added, neurons that fired.
struct NeuronCounts {
    int64_t first, second, down, fired;
};

struct Norm {
    const float* weight;  // (n_embd)
    const float* bias;    // (n_embd) or null
    float eps;
    bool subtract_mean;
};

struct Linear {
    WeightMatrix matrix;
    const float* bias;  // (rows) or null
};

// Norm, attention, output projection. Prepared at load; what changes from step to step is in AttentionStep.
struct AttentionBlockJob {
    Norm norm;
    Linear q, k, v, output;
    int64_t n_embd;
    int64_t n_head;
    int64_t n_head_kv;
    int64_t head_dim;
    int64_t head_dim_v;
    float scale;
};

// cos and sin are null for a model without rotary positions.
struct AttentionStep {
    const float* x;         // (n_tokens, n_embd)
    const float* residual;  // (n_tokens, n_embd), added to the result
    float* y;               // (n_tokens, n_embd); may be x or residual
    CacheRows k_cache;
    CacheRows v_cache;
    const int64_t* slots;
    const int64_t* positions;
    const float* cos;
    const float* sin;
    int64_t n_tokens;
    int64_t n_ctx;
    int64_t n_rot;
    bool halves;
};

// Predictor, norm, sparse FFN. A gate or predictor that is absent has null data. `dense` reads every row.
struct FeedForwardBlockJob {
    Norm norm;
    Linear gate, up, down;
    WeightMatrix fc1, fc2;
    bool down_is_transposed;
    bool dense;
    Activation activation;
    float fatrelu_threshold;
    float sparse_threshold;
    int64_t n_embd;
    int64_t n_ff;
};

// predicted and fired, (n_tokens, n_ff) of 0 and 1, are filled where they are not null.
struct FeedForwardStep {
    const float* x;         // (n_tokens, n_embd): what the predictor sees, and the FFN through its norm
    const float* residual;  // (n_tokens, n_embd), added to the result
    float* y;               // (n_tokens, n_embd); may be x or residual
    uint8_t* predicted;
    uint8_t* fired;
    int64_t n_tokens;
};

// The blocks of one layer, and where its keys and values lie.
struct LayerJob {
    const AttentionBlockJob* attention;
    const FeedForwardBlockJob* feed_forward;
    CacheRows k_cache;
    CacheRows v_cache;
};

// A forward through all layers. parallel: an FFN and its predictor see the layer's input, as attention does.
struct LayersStep {
    const LayerJob* layers;
    int64_t n_layers;
    bool parallel;
    const float* x;  // (n_tokens, n_embd)
    float* y;        // (n_tokens, n_embd); not x
    const int64_t* slots;
    const int64_t* positions;
    const float* cos;
    const float* sin;
    int64_t n_tokens;
    int64_t n_ctx;
    int64_t n_rot;
    bool halves;
};

// What changes from step to step where a block's rows are run alone: over inputs that are normed already, for the neurons
// of a mask or all, without a residual. mask and fired, (n_tokens, n_ff) of 0 and 1, may be null.
struct FeedForwardPartStep {
    const float* h;  // (n_tokens, n_embd)
    const uint8_t* mask;
    float* y;  // (n_tokens, n_embd); not h
    uint8_t* fired;
    int64_t n_tokens;
};

// fc1 (rank, n_embd), fc2 (n_ff, rank).
struct PredictJob {
    WeightMatrix fc1, fc2;
    const float* x;  // (n_tokens, n_embd)
    float threshold;
    uint8_t* mask;  // (n_tokens, n_ff)
    int64_t n_tokens;
};

// (token, row) products, counted where they were computed, neurons that fired, and seconds in the predictor.
struct FeedForwardCounts {
    int64_t gate, up, down, fired;
    double predictor_s;
};

}  // namespace powerinfer
