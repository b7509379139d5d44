// Random weights of every type, outputs between guards, and results as bits: what the native test program works with.
// Weights and inputs are exactly as long as their content, so that a sanitizer sees the first byte read beyond them.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <string>
#include <vector>

#include "operations.hpp"

namespace native_test {

using namespace powerinfer;

[[noreturn]] inline void fail(const std::string& message) {
    std::fprintf(stderr, "FAILED: %s\n", message.c_str());
    std::exit(1);
}

// splitmix64: the same numbers everywhere.
class Random {
public:
    explicit Random(uint64_t seed) : state_(seed) {}

    uint64_t next() {
        uint64_t z = (state_ += 0x9e3779b97f4a7c15u);
        z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
        z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
        return z ^ (z >> 31);
    }
    float uniform() { return static_cast<float>(next() >> 40) * 0x1p-23f - 1.0f; }  // [-1, 1)

private:
    uint64_t state_;
};

inline std::vector<float> floats(Random& random, int64_t n) {
    std::vector<float> values(static_cast<size_t>(n));
    for (float& value : values) value = random.uniform();
    return values;
}

inline std::vector<uint8_t> mask_of(Random& random, int64_t n, float density) {
    std::vector<uint8_t> mask(static_cast<size_t>(n));
    for (uint8_t& wanted : mask) wanted = random.uniform() * 0.5f + 0.5f < density;
    return mask;
}

// Bytes of a block and where its float16 scales are; types without blocks have none.
struct Layout {
    WeightType type;
    const char* name;
    int64_t n_weights, n_bytes;
    std::vector<int64_t> scales;
};
inline const std::vector<Layout>& layouts() {
    static const std::vector<Layout> all = {
        {WeightType::F32, "F32", 1, 4, {}},
        {WeightType::F16, "F16", 1, 2, {}},
        {WeightType::BF16, "BF16", 1, 2, {}},
        {WeightType::Q4_0, "Q4_0", 32, 18, {0}},
        {WeightType::Q4_1, "Q4_1", 32, 20, {0, 2}},
        {WeightType::Q5_0, "Q5_0", 32, 22, {0}},
        {WeightType::Q5_1, "Q5_1", 32, 24, {0, 2}},
        {WeightType::Q8_0, "Q8_0", 32, 34, {0}},
        {WeightType::Q2_K, "Q2_K", 256, 84, {80, 82}},
        {WeightType::Q3_K, "Q3_K", 256, 110, {108}},
        {WeightType::Q4_K, "Q4_K", 256, 144, {0, 2}},
        {WeightType::Q5_K, "Q5_K", 256, 176, {0, 2}},
        {WeightType::Q6_K, "Q6_K", 256, 210, {208}},
    };
    return all;
}

// A matrix with its memory.
class Weights {
public:
    Weights(const Layout& layout, int64_t rows, int64_t cols, Random& random)
        : matrix{nullptr, layout.type, rows, cols, cols / layout.n_weights * layout.n_bytes}, bytes_(size(), align()) {
        fill(layout, random);
        matrix.data = bytes_.data.get();
    }

    // The same rows, packed.
    static Weights packed(const Weights& stored, Executor& executor) {
        Weights result(packed_form(stored.matrix));
        pack(stored.matrix, result.matrix, result.bytes_.data.get(), executor);
        return result;
    }

    WeightMatrix matrix;

private:
    struct Free {
        size_t alignment;
        void operator()(uint8_t* p) const { ::operator delete(p, std::align_val_t(alignment)); }
    };
    struct Bytes {
        Bytes(size_t n, size_t alignment)
            : data(static_cast<uint8_t*>(::operator new(n, std::align_val_t(alignment))), Free{alignment}) {}
        std::unique_ptr<uint8_t, Free> data;
    };

    explicit Weights(const WeightMatrix& like) : matrix(like), bytes_(size(), align()) {
        matrix.data = bytes_.data.get();
    }

    static size_t align() { return 64; }
    size_t size() const { return static_cast<size_t>(matrix.rows * matrix.row_bytes); }

    void fill(const Layout& layout, Random& random) {
        uint8_t* p = bytes_.data.get();
        for (size_t i = 0; i < size(); i++) p[i] = static_cast<uint8_t>(random.next());
        if (layout.type == WeightType::F32) {
            for (size_t i = 0; i < size(); i += 4) {
                const float value = random.uniform();
                std::memcpy(p + i, &value, sizeof value);
            }
        } else if (layout.scales.empty()) {
            // The sign and the lower bits stay random; the exponent makes it about 0.2, in either of the types.
            const uint8_t high = layout.type == WeightType::F16 ? 0x30 : 0x3e;
            for (size_t i = 1; i < size(); i += 2) p[i] = static_cast<uint8_t>((p[i] & 0x80) | high);
        }
        for (size_t block = 0; block < size(); block += static_cast<size_t>(layout.n_bytes))
            for (const int64_t at : layout.scales) {
                // 2^-8 to 2^-7 of either sign, as float16.
                const auto scale = static_cast<uint16_t>((random.next() & 0x83ff) | 0x1c00);
                std::memcpy(p + block + static_cast<size_t>(at), &scale, sizeof scale);
            }
    }

    Bytes bytes_;
};

// The rows of several matrices beside each other, in memory that ends with the last of them: those of `packed` packed,
// then those of `copied` as they are.
class Interleaved {
public:
    Interleaved(const std::vector<const Weights*>& packed, const std::vector<const Weights*>& copied,
                Executor& executor) {
        int64_t stride = 0;
        for (const Weights* weights : packed) matrices.push_back(packed_form(weights->matrix));
        for (const Weights* weights : copied) matrices.push_back(weights->matrix);
        for (const WeightMatrix& matrix : matrices) stride += matrix.row_bytes;
        memory_.resize(static_cast<size_t>(matrices[0].rows * stride));
        int64_t begin = 0;
        for (size_t i = 0; i < matrices.size(); i++) {
            WeightMatrix& matrix = matrices[i];
            uint8_t* place = memory_.data() + begin;
            begin += matrix.row_bytes;
            matrix.row_bytes = stride;
            matrix.data = place;
            if (i < packed.size())
                pack(packed[i]->matrix, matrix, place, executor);
            else
                copy(copied[i - packed.size()]->matrix, matrix, place, executor);
        }
    }

    std::vector<WeightMatrix> matrices;

private:
    std::vector<uint8_t> memory_;
};

// Everything that a run computed, as bits, in order.
class Results {
public:
    void add(const float* values, int64_t n) {
        for (int64_t i = 0; i < n; i++) {
            if (!std::isfinite(values[i])) fail("a result was not written, or is not finite");
            words_.push_back(__builtin_bit_cast(uint32_t, values[i]));
        }
    }
    void add(const uint8_t* bytes, int64_t n) { words_.insert(words_.end(), bytes, bytes + n); }
    void add(const uint16_t* halves, int64_t n) { words_.insert(words_.end(), halves, halves + n); }
    void add_count(int64_t count) { words_.push_back(static_cast<uint32_t>(count)); }
    size_t size() const { return words_.size(); }
    bool operator==(const Results&) const = default;

private:
    std::vector<uint32_t> words_;
};

// An output of NaN (bytes of 0xff) between guards that must stay as they are.
template <typename T>
class Output {
public:
    explicit Output(int64_t n) : n_(n), all_(static_cast<size_t>(n) + 2 * kGuard) {
        std::memset(all_.data(), 0xff, all_.size() * sizeof(T));
        std::memset(all_.data(), kMark, kGuard * sizeof(T));
        std::memset(all_.data() + kGuard + n, kMark, kGuard * sizeof(T));
    }

    T* data() { return all_.data() + kGuard; }

    // Notes the content in `results` once the guards are seen to be whole.
    void close(Results& results) {
        check_guards();
        results.add(data(), n_);
    }

    void check_guards() const {
        const auto* bytes = reinterpret_cast<const uint8_t*>(all_.data());
        const size_t end = all_.size() * sizeof(T), guard = kGuard * sizeof(T);
        for (size_t i = 0; i < guard; i++)
            if (bytes[i] != kMark || bytes[end - 1 - i] != kMark) fail("something was written beside an output");
    }

private:
    static constexpr size_t kGuard = 64;
    static constexpr int kMark = 0x5a;
    int64_t n_;
    std::vector<T> all_;
};

}  // namespace native_test
