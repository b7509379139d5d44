// Packed Q6_K rows times tokens, portable: 16 weights after the other, an exact integer sum times the scales. Included
// inside the instruction set's namespace.

template <int MR, int NT>
void six_bit_tile(const uint8_t* const* rows, const uint8_t* const*, const PackedToken* x, int64_t cols,
                  float* results, int n_tokens) {
    const int64_t n_blocks = cols / 256;
    for (int r = 0; r < MR; r++)
        for (int t = 0; t < NT; t++) {
            float total = 0;
            for (int64_t i = 0; i < cols / 16; i++) {
                const uint8_t* quants = six_bit_quants(rows[r], n_blocks) + i / 16 * 192;
                int dot = 0;
                for (int k = 0; k < 16; k++) {
                    const int w = static_cast<int>(i % 16) * 16 + k, v = w / 64, j = w % 64;
                    const int low = quants[v / 2 * 64 + j] >> (v % 2 * 4) & 15, high = quants[128 + j] >> (2 * v) & 3;
                    dot += ((low | high << 4) - 32) * x[t].q[i * 16 + k];
                }
                const int8_t step = static_cast<int8_t>(six_bit_scales(rows[r], n_blocks)[i]);
                const float scale = read_half(rows[r] + i / 16 * 2) * x[t].scales[i / 2];
                total = madd1(static_cast<float>(dot), scale * static_cast<float>(step), total);
            }
            results[r * n_tokens + t] = total;
        }
}
