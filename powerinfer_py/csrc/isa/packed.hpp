// Packed rows: the weights of a row in an order that integer dot products take as it is, in the bytes of the file's row.
// Included inside the instruction set's namespace, after the version of packed_tile for it.
//
// A row is the float16 scales of all its blocks, for Q4_1 then the float16 minima of all blocks, then the quants.
// Nibbles: in groups of 128 weights (64 bytes), byte j holds weight j below and weight 64 + j above; what is left is one
// group of 64 (32 bytes: j, 32 + j) and one of 32 (16 bytes: j, 16 + j). Q8_0: one byte a weight, 128 added to it.
//
// Measured on Zen 5, Q4_0, rows of 4096, one core: 46 GB/s from cache and 27 from memory, against 17 and 12 from the
// file's blocks of 18 bytes, whose scales lie between the nibbles.

// Values of 32 activations in 8 bits: scale = largest magnitude / 127, so that value ~ scale * q.
void quantise_token(const float* x, int64_t n, int8_t* q, float* scales, float* sums) {
    for (int64_t b = 0; b < n / 32; b++) {
        const float* v = x + b * 32;
        // Magnitudes compare like their bits; infinity and NaN come last, and make the whole block NaN.
        uint32_t top = 0;
        for (int i = 0; i < 32; i++) {
            const uint32_t magnitude = bits_of(v[i]) & 0x7fffffffu;
            top = magnitude > top ? magnitude : top;
        }
        const float scale = top < 0x7f800000u ? float_from_bits(top) / 127.0f : float_from_bits(0x7fc00000u);
        const float inverse = scale > 0 ? 1.0f / scale : 0.0f;
        int total = 0;
        for (int i = 0; i < 32; i++) {
            // Adding 1.5 * 2^23 rounds to the nearest integer, ties to even, in the low bits.
            const uint32_t rounded = bits_of(v[i] * inverse + 12582912.0f);
            q[b * 32 + i] = static_cast<int8_t>(rounded & 0xffu);
            total += q[b * 32 + i];
        }
        scales[b] = scale;
        sums[b] = scale * static_cast<float>(total);
    }
}

// Nibbles of weights [0, n) out of the file's blocks; `bytes` from one block to the next, quants `skip` into it.
inline void nibbles_of_blocks(const uint8_t* blocks, int bytes, int skip, int64_t n, uint8_t* w) {
    for (int64_t b = 0; b < n / 32; b++)
        for (int j = 0; j < 16; j++) {
            const uint8_t pair = blocks[b * bytes + skip + j];
            w[b * 32 + j] = pair & 15;
            w[b * 32 + 16 + j] = static_cast<uint8_t>(pair >> 4);
        }
}

inline void join_nibbles(const uint8_t* w, int half, uint8_t* out) {
    for (int j = 0; j < half; j++) out[j] = static_cast<uint8_t>(w[j] | w[half + j] << 4);
}

inline void pack_nibbles(const uint8_t* row, int bytes, int skip, int64_t cols, uint8_t* out) {
    uint8_t w[128];
    int64_t done = 0;
    while (done < cols) {
        const int64_t left = cols - done;
        const int n = left >= 128 ? 128 : left >= 64 ? 64 : 32;
        nibbles_of_blocks(row + done / 32 * bytes, bytes, skip, n, w);
        join_nibbles(w, n / 2, out);
        out += n / 2;
        done += n;
    }
}

// float16 numbers `offset` into each block, side by side.
inline void pack_halves(const uint8_t* row, int bytes, int offset, int64_t n_blocks, uint8_t* out) {
    for (int64_t b = 0; b < n_blocks; b++) __builtin_memcpy(out + 2 * b, row + b * bytes + offset, 2);
}

// A row of a file (`type` is the file's) as a packed row of the same number of bytes.
void pack_row(WeightType type, const uint8_t* row, int64_t cols, uint8_t* out) {
    const int64_t n_blocks = cols / 32;
    switch (type) {
        case WeightType::Q4_0:
            pack_halves(row, 18, 0, n_blocks, out);
            return pack_nibbles(row, 18, 2, cols, out + 2 * n_blocks);
        case WeightType::Q4_1:
            pack_halves(row, 20, 0, n_blocks, out);
            pack_halves(row, 20, 2, n_blocks, out + 2 * n_blocks);
            return pack_nibbles(row, 20, 4, cols, out + 4 * n_blocks);
        case WeightType::Q8_0:
            pack_halves(row, 34, 0, n_blocks, out);
            for (int64_t b = 0; b < n_blocks; b++)
                for (int j = 0; j < 32; j++)
                    out[2 * n_blocks + b * 32 + j] = static_cast<uint8_t>(row[b * 34 + 2 + j] ^ 0x80);
            return;
        default: return;  // the caller packs these three alone
    }
}

// All rows times NT of the tokens, MR rows at a time; each group of rows asks for the next while it computes.
template <WeightType type, int MR, int NT>
void packed_rows(const uint8_t* const* rows, int n_rows, const PackedToken* x, int64_t cols, float* results,
                 int n_tokens) {
    int r = 0;
    for (; r + MR <= n_rows; r += MR) {
        const uint8_t* const* next = rows + (r + 2 * MR <= n_rows ? r + MR : r);
        packed_tile<type, MR, NT>(rows + r, next, x, cols, results + r * n_tokens, n_tokens);
    }
    for (; r < n_rows; r++)
        packed_tile<type, 1, NT>(rows + r, rows + r, x, cols, results + r * n_tokens, n_tokens);
}

// results[r * n_tokens + t].
template <WeightType type>
void packed_products(
    const uint8_t* const* rows, int n_rows, const PackedToken* x, int n_tokens, int64_t cols, float* results) {
    int t = 0;
    for (; t + 4 <= n_tokens; t += 4) packed_rows<type, 2, 4>(rows, n_rows, x + t, cols, results + t, n_tokens);
    switch (n_tokens - t) {
        case 3: return packed_rows<type, 2, 3>(rows, n_rows, x + t, cols, results + t, n_tokens);
        case 2: return packed_rows<type, 2, 2>(rows, n_rows, x + t, cols, results + t, n_tokens);
        case 1: return packed_rows<type, 4, 1>(rows, n_rows, x + t, cols, results + t, n_tokens);
    }
}
