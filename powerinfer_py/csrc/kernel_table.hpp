// The kernels of one instruction set: each entry computes one work item of a job, on one thread, and shares nothing.
// What an item is worth (rows, tokens, columns) is fixed by the job alone, never by the number of threads.
#pragma once

#include <cstdint>

#include "jobs.hpp"

namespace powerinfer {

// A rectangle of products: rows [row_begin, row_end) by tokens [token_begin, token_end).
struct ProductTile {
    int64_t row_begin, row_end, token_begin, token_end;
};

// Columns [col_begin, col_end) of the sums of tokens [token_begin, token_end); col_begin is a multiple of 256.
struct StripTile {
    int64_t col_begin, col_end, token_begin, token_end;
};

// accumulate_rows adds the rows of each of so many blocks into a partial vector before it joins the token's total. Which
// block a row is in does not depend on which rows are added, so that leaving out zeros changes no bit.
inline constexpr int64_t kRowBlocks = 16;
inline constexpr int64_t rows_of_block(int64_t n_rows) { return (n_rows + kRowBlocks - 1) / kRowBlocks; }
inline constexpr int64_t kStripCols = 256;
inline constexpr int64_t kStripTokens = 64;
// How many neurons neurons_block computes at a time, and how many beyond its block it looks for.
inline constexpr int kGroupNeurons = 8;
// Floats of scratch that accumulate_strip needs.
inline constexpr int64_t kStripScratch = 2 * kStripTokens * kStripCols;
inline constexpr int64_t kTokenBlock = 64;

// Rows of an item of products with striped tokens: those of a tile, and those of one under a mask, which share the stripes.
inline constexpr int kStripedRows = 24;
inline constexpr int kStripedSparseRows = 72;

struct KernelTable {
    const char* name;
    // Products of the tile; returns how many were computed (all, or those the mask wants).
    int64_t (*linear_tile)(const LinearJob&, const ProductTile&);
    // partial[cols] = sum over the non-zero coefficients (or all) of rows [begin, end) in order, from zero; rows[] is
    // scratch for their numbers. Returns how many were added.
    int64_t (*accumulate_block)(
        const AccumulateJob&, int64_t token, int64_t begin, int64_t end, int32_t* rows, float* partial);
    // The wanted neurons of rows [begin, end), which are one of the kRowBlocks blocks: `fired` of each, and their sum of
    // down rows in partial[cols], as accumulate_block makes it. rows: scratch, end - begin + kGroupNeurons.
    NeuronCounts (*neurons_block)(const NeuronsJob&, int64_t begin, int64_t end, int32_t* rows, float* partial);
    // y[token, begin..end) = ((partials[0] + partials[1]) + ...) + bias; partials (kRowBlocks, cols).
    void (*combine_partials)(const AccumulateJob&, int64_t token, const float* partials, int64_t begin, int64_t end);
    // The whole sums of a strip of columns for a block of tokens; returns the pairs added if it holds column 0, else 0.
    int64_t (*accumulate_strip)(const AccumulateJob&, const StripTile&, float* scratch);
    // One token's activations in 8 bits.
    void (*quantise_token)(const TokensJob&, int64_t token);
    // A stored row of a type that can be packed, as a packed row.
    void (*pack_row)(WeightType type, const uint8_t* row, int64_t cols, uint8_t* out);
    // n weights, a whole number of blocks, as stored; false where one is not finite or too large for the type.
    bool (*quantise_range)(WeightType type, const float* x, int64_t n, uint8_t* out);
    void (*rows)(const RowsJob&, int64_t begin, int64_t end);
    void (*norm)(const NormJob&, int64_t token);
    void (*rope)(const RopeJob&, int64_t token);
    // Stores keys and values of every token for one key head, in token order.
    void (*attention_store)(const AttentionJob&, int64_t head_kv);
    // All query heads of one token that share a key head; scores: (n_head / n_head_kv) * (positions[token] + 1) floats.
    void (*attention_item)(const AttentionJob&, int64_t token, int64_t head_kv, float* scores);
    // Elements [begin, end) of flat arrays; the counts are of mask elements set, and of neurons that fired.
    void (*relu)(float* x, int64_t begin, int64_t end);
    int64_t (*predict)(const float* scores, float threshold, uint8_t* mask, int64_t begin, int64_t end);
    void (*fire)(const HiddenJob&, int64_t begin, int64_t end);
    int64_t (*hide)(const HiddenJob&, int64_t begin, int64_t end);
    void (*add)(const float* a, const float* b, float* y, int64_t begin, int64_t end);
};

namespace isa_scalar {
extern const KernelTable kernel_table;
}
namespace isa_avx2 {
extern const KernelTable kernel_table;
}
namespace isa_avx512 {
extern const KernelTable kernel_table;
}
namespace isa_avx512vnni {
extern const KernelTable kernel_table;
}

}  // namespace powerinfer
