// Packed rows: the weights of a row in an order that integer dot products take as it is, in the bytes of the file's row.
// Included inside the instruction set's namespace, after the version of packed_tile for it.
//
// A row is the float16 scales of all its blocks, for Q4_1 then the float16 minima of all blocks, then the quants.
// Nibbles: in groups of 128 weights (64 bytes), byte j holds weight j below and weight 64 + j above; what is left is one
// group of 64 (32 bytes: j, 32 + j) and one of 32 (16 bytes: j, 16 + j). Q8_0: one byte a weight, 128 added to it.
//
// Q6_K: the float16 scales of all blocks of 256, then their 16 steps each, then 192 bytes a block: byte j of the first 64
// holds the low four bits of weights j and 64 + j, of the second 64 those of 128 + j and 192 + j, byte j of the last 64
// the two high bits of all four. Q4_K becomes Q4_1, each scale and minimum rounded to float16 once.
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

// The 256 quants of a Q6_K block of a file, 0 to 63.
inline void six_bit_weights(const uint8_t* block, uint8_t* w) {
    for (int half = 0; half < 2; half++) {
        const uint8_t *low = block + 64 * half, *high = block + 128 + 32 * half;
        for (int i = 0; i < 32; i++)
            for (int q = 0; q < 4; q++) {
                const int nibble = low[i + 32 * (q % 2)] >> (q / 2 * 4) & 15;
                w[128 * half + 32 * q + i] = static_cast<uint8_t>(nibble | (high[i] >> (2 * q) & 3) << 4);
            }
    }
}

inline void pack_six_bits(const uint8_t* row, int64_t n_blocks, uint8_t* out) {
    uint8_t w[256];
    for (int64_t b = 0; b < n_blocks; b++) {
        const uint8_t* block = row + b * 210;
        uint8_t* quants = out + 18 * n_blocks + b * 192;
        __builtin_memcpy(out + 2 * b, block + 208, 2);
        __builtin_memcpy(out + 2 * n_blocks + b * 16, block + 192, 16);
        six_bit_weights(block, w);
        for (int j = 0; j < 64; j++) {
            quants[j] = static_cast<uint8_t>((w[j] & 15) | (w[64 + j] & 15) << 4);
            quants[64 + j] = static_cast<uint8_t>((w[128 + j] & 15) | (w[192 + j] & 15) << 4);
            quants[128 + j] =
                static_cast<uint8_t>(w[j] >> 4 | w[64 + j] >> 4 << 2 | w[128 + j] >> 4 << 4 | w[192 + j] >> 4 << 6);
        }
    }
}

// Scale and minimum of sub-block j of a Q4_K block, 6 bits each in 12 bytes.
inline void scale_and_minimum(const uint8_t* packed, int j, int* scale, int* minimum) {
    if (j < 4) {
        *scale = packed[j] & 63;
        *minimum = packed[j + 4] & 63;
    } else {
        *scale = (packed[j + 4] & 15) | packed[j - 4] >> 6 << 4;
        *minimum = packed[j + 4] >> 4 | packed[j] >> 6 << 4;
    }
}

inline void pack_four_bit_superblocks(const uint8_t* row, int64_t cols, uint8_t* out) {
    const int64_t n_blocks = cols / 32;
    uint16_t* scales = reinterpret_cast<uint16_t*>(out);
    uint8_t w[256];
    for (int64_t b = 0; b < cols / 256; b++) {
        const uint8_t* block = row + b * 144;
        const float d = read_half(block), d_minimum = read_half(block + 2);
        for (int j = 0; j < 8; j++) {
            int scale, minimum;
            scale_and_minimum(block + 4, j, &scale, &minimum);
            scales[b * 8 + j] = half_from_float(d * static_cast<float>(scale));
            scales[n_blocks + b * 8 + j] = half_from_float(-d_minimum * static_cast<float>(minimum));
        }
        for (int i = 0; i < 128; i++) {
            const uint8_t pair = block[16 + i];
            w[i / 32 * 64 + i % 32] = pair & 15;
            w[i / 32 * 64 + 32 + i % 32] = static_cast<uint8_t>(pair >> 4);
        }
        join_nibbles(w, 64, out + 4 * n_blocks + b * 128);
        join_nibbles(w + 128, 64, out + 4 * n_blocks + b * 128 + 64);
    }
}

// A row of a file (`type` is the file's) as a packed row of the same number of bytes, Q4_K apart.
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
        case WeightType::Q4_K: return pack_four_bit_superblocks(row, cols, out);
        case WeightType::Q6_K: return pack_six_bits(row, cols / 256, out);
        default: return;  // the caller packs these alone
    }
}

template <WeightType type, int MR, int NT>
void any_packed_tile(const uint8_t* const* rows, const uint8_t* const* next, const PackedToken* x, int64_t cols,
                     float* results, int n_tokens) {
    if constexpr (type == WeightType::Q6_K)
        six_bit_tile<MR, NT>(rows, next, x, cols, results, n_tokens);
    else
        packed_tile<type, MR, NT>(rows, next, x, cols, results, n_tokens);
}

// All rows times NT of the tokens, MR rows at a time; each group of rows asks for the next while it computes.
template <WeightType type, int MR, int NT>
void packed_rows(const uint8_t* const* rows, int n_rows, const PackedToken* x, int64_t cols, float* results,
                 int n_tokens) {
    int r = 0;
    for (; r + MR <= n_rows; r += MR) {
        const uint8_t* const* next = rows + (r + 2 * MR <= n_rows ? r + MR : r);
        any_packed_tile<type, MR, NT>(rows + r, next, x, cols, results + r * n_tokens, n_tokens);
    }
    for (; r < n_rows; r++)
        any_packed_tile<type, 1, NT>(rows + r, rows + r, x, cols, results + r * n_tokens, n_tokens);
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
