// Four lanes of four bytes, portable. Included inside the instruction set's namespace.

typedef uint32_t I __attribute__((vector_size(16)));

// n lanes from memory, the others zero.
inline I load_lanes(const void* p, int n) {
    I v = {};
    __builtin_memcpy(&v, p, 4 * static_cast<uint64_t>(n));
    return v;
}
inline V load_floats(const float* p, int n) {
    V v = {};
    __builtin_memcpy(&v, p, 4 * static_cast<uint64_t>(n));
    return v;
}
inline V load_halves(const uint8_t* p, int n) {
    V v = {};
    for (int i = 0; i < n; i++) v[i] = read_half(p + 2 * i);
    return v;
}
// Four of 16 signed bytes, from lane `begin` on, as floats.
inline V load_signed_bytes(const uint8_t* p, int begin) {
    V v = {};
    for (int i = 0; i < 4; i++) v[i] = static_cast<float>(static_cast<int8_t>(p[begin + i]));
    return v;
}
// p[(begin + i) / 2]: a number for two neighbouring lanes each.
inline V load_pairs(const float* p, int begin) {
    const float *first = p + begin / 2, *second = first + 1;
    return V{*first, *first, *second, *second};
}

inline V multiply(V a, V b) { return a * b; }
inline V as_floats(I v) {
    V floats = {};
    for (int i = 0; i < 4; i++) floats[i] = static_cast<float>(static_cast<int32_t>(v[i]));
    return floats;
}
inline I lane_zero() { return I{0, 0, 0, 0}; }
inline I lane_add(I a, I b) { return a + b; }
inline I either(I a, I b) { return a | b; }
template <int bits>
inline I times_power_of_two(I v) { return v << bits; }
// Every byte moved right by `shift` (left where it is negative), but for the bits of `mask`.
template <int shift, int mask>
inline I byte_bits(I v) {
    constexpr uint32_t all = static_cast<uint32_t>(mask) * 0x01010101u;
    return (shift >= 0 ? v >> (shift > 0 ? shift : 0) : v << (shift < 0 ? -shift : 0)) & all;
}

// Called, not inlined: unrolled into every tile it took the compiler four minutes.
[[gnu::noinline]] I add_byte_products(I sums, I u, I s) {
    for (int i = 0; i < 4; i++)
        for (int byte = 0; byte < 32; byte += 8) {
            const int weight = static_cast<int>(u[i] >> byte & 255u), token = static_cast<int8_t>(s[i] >> byte & 255u);
            sums[i] += static_cast<uint32_t>(weight * token);
        }
    return sums;
}
constexpr bool kSignedBytes = false;
inline I signed_bytes(I u) { return u; }
template <int bits>
inline I add_products(I sums, I w0, I s0, I w1, I s1) {
    return add_byte_products(add_byte_products(sums, w0, s0), w1, s1);
}
template <int bits>
inline I finished(I sums) { return sums; }
