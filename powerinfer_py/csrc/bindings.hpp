// What the files of the Python binding share: refusing bad arguments, and a weight matrix that keeps its memory alive.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <stdlib.h>
#include <sys/mman.h>

#include <memory>
#include <new>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "operations.hpp"

namespace powerinfer {

namespace nb = nanobind;

using Bytes = nb::ndarray<const uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

struct BlockLayout {
    WeightType type;
    int64_t n_weights, n_bytes;
};
inline constexpr BlockLayout kLayouts[] = {
    {WeightType::F32, 1, 4},      {WeightType::F16, 1, 2},      {WeightType::BF16, 1, 2},     {WeightType::Q4_0, 32, 18},
    {WeightType::Q4_1, 32, 20},   {WeightType::Q5_0, 32, 22},   {WeightType::Q5_1, 32, 24},   {WeightType::Q8_0, 32, 34},
    {WeightType::Q2_K, 256, 84},  {WeightType::Q3_K, 256, 110}, {WeightType::Q4_K, 256, 144}, {WeightType::Q5_K, 256, 176},
    {WeightType::Q6_K, 256, 210},
};

[[noreturn]] inline void refuse(const std::string& message) { throw nb::value_error(message.c_str()); }

inline const BlockLayout& layout_of(int type_id) {
    for (const BlockLayout& layout : kLayouts)
        if (static_cast<int>(layout.type) == type_id) return layout;
    refuse("no kernel computes with weight type " + std::to_string(type_id));
}

inline void require(bool condition, const char* message) {
    if (!condition) refuse(message);
}

inline void require_stored(const WeightMatrix& m, const char* operation) {
    if (m.packed) refuse(std::string(operation) + " reads rows as files store them, and these are packed");
}

// An address as a pointer; null only where `n` elements are none.
template <typename T>
T* pointer(uintptr_t address, int64_t n, const char* name) {
    if (address == 0 && n != 0) refuse(std::string(name) + " is null");
    return reinterpret_cast<T*>(address);
}

inline void require_indices(const int64_t* ids, int64_t n, int64_t end, const char* name) {
    for (int64_t i = 0; i < n; i++)
        if (ids[i] < 0 || ids[i] >= end) {
            const std::string message =
                std::string(name) + " " + std::to_string(ids[i]) + " is not in [0, " + std::to_string(end) + ")";
            throw nb::index_error(message.c_str());
        }
}

// Rows of `dim` values at `address`; null only where there are none.
inline CacheRows cache_at(uintptr_t address, int type_id, int64_t dim, int64_t n, const char* name) {
    const WeightType type = layout_of(type_id).type;
    if (type != WeightType::F16 && type != WeightType::Q8_0) refuse(std::string(name) + " must be F16 or Q8_0");
    if (type == WeightType::Q8_0 && dim % 32 != 0) refuse(std::string(name) + " in Q8_0 has rows of whole blocks");
    return cache_rows(pointer<uint8_t>(address, n, name), type, dim);
}

// Memory for weights, in huge pages where that can save address translations: a row is read once and is gone.
inline std::shared_ptr<uint8_t> pages(size_t n_bytes) {
    constexpr size_t kHugePage = size_t{1} << 21, kLine = 64;
    const size_t alignment = n_bytes >= 2 * kHugePage ? kHugePage : kLine;
    const size_t rounded = (n_bytes + kLine - 1) / kLine * kLine;
    void* memory = nullptr;
    if (posix_memalign(&memory, alignment, rounded ? rounded : kLine) != 0) throw std::bad_alloc();
    // Whole huge pages only: the rest of the last one would be resident without being used.
    if (alignment == kHugePage) madvise(memory, rounded / kHugePage * kHugePage, MADV_HUGEPAGE);
    return {static_cast<uint8_t*>(memory), [](uint8_t* p) { free(p); }};
}

class Matrix {
public:
    // packed: `data` are the packed rows of a matrix of that type.
    Matrix(Bytes data, int type_id, int64_t rows, int64_t cols, bool packed) : data_(std::move(data)) {
        const BlockLayout& layout = layout_of(type_id);
        // The lists of accumulate_rows keep row numbers in 32 bits.
        require(rows >= 0 && rows < (int64_t{1} << 31), "rows must be in [0, 2^31)");
        require(cols >= 0 && cols < (int64_t{1} << 31), "cols must be in [0, 2^31)");
        const Bytes& bytes = *data_;
        require(cols % layout.n_weights == 0, "cols is no multiple of the block of the weight type");
        const int64_t row_bytes = cols / layout.n_weights * layout.n_bytes;
        weights = {bytes.data(), layout.type, rows, cols, row_bytes};
        if (packed) {
            weights = packed_form(weights);
            require(weights.packed, kNotPacked);
        }
        const uint64_t wanted = static_cast<uint64_t>(rows) * static_cast<uint64_t>(weights.row_bytes);
        if (bytes.size() != wanted)
            refuse("data has " + std::to_string(bytes.size()) + " bytes, not " + std::to_string(wanted));
    }

    // Room for the packed rows of `stored`, to be filled by pack().
    static Matrix packed_like(const Matrix& stored) {
        require(!stored.weights.packed, "the matrix is packed already");
        stored.require_alone();
        WeightMatrix weights = packed_form(stored.weights);
        require(weights.packed, kNotPacked);
        Matrix packed(stored);
        packed.data_.reset();
        packed.owned_ = pages(static_cast<size_t>(weights.rows * weights.row_bytes));
        packed.weights = weights;
        packed.weights.data = packed.owned_.get();
        return packed;
    }

    // Room for the rows of several matrices beside each other, row by row: the packed rows of those of `packed`, then those
    // of `copied` as they are.
    static std::vector<Matrix> interleaved_like(
        const std::vector<const Matrix*>& packed, const std::vector<const Matrix*>& copied) {
        std::vector<Matrix> made;
        int64_t stride = 0;
        for (const auto* matrices : {&packed, &copied})
            for (const Matrix* stored : *matrices) {
                stored->require_alone();
                Matrix& matrix = made.emplace_back(*stored);
                require(stored->weights.rows == made[0].weights.rows, "the matrices differ in rows");
                if (matrices == &packed) matrix.weights = packed_form(stored->weights);
                require(matrix.weights.packed == (matrices == &packed), kNotPacked);
                matrix.bytes_of_row_ = matrix.weights.row_bytes;
                stride += matrix.weights.row_bytes;
            }
        if (made.empty()) return made;
        const std::shared_ptr<uint8_t> owned = pages(static_cast<size_t>(made[0].weights.rows * stride));
        int64_t begin = 0;
        for (Matrix& matrix : made) {
            matrix.data_.reset();
            // It begins where its first row does, and keeps the memory of all of them.
            matrix.owned_ = std::shared_ptr<uint8_t>(owned, owned.get() + begin);
            begin += matrix.weights.row_bytes;
            matrix.weights.data = matrix.owned_.get();
            matrix.weights.row_bytes = stride;
        }
        return made;
    }

    // Room for a copy of the rows as they are.
    static Matrix copied_like(const Matrix& stored) {
        stored.require_alone();
        Matrix copied(stored);
        copied.data_.reset();
        copied.owned_ = pages(static_cast<size_t>(stored.weights.rows * stored.weights.row_bytes));
        copied.weights.data = copied.owned_.get();
        return copied;
    }

    uint8_t* owned() { return owned_.get(); }

    // A copy of the rows as they are read.
    nb::bytes to_bytes() const {
        if (bytes_of_row_ == 0) return nb::bytes(weights.data, static_cast<size_t>(weights.rows * weights.row_bytes));
        std::string rows;
        for (int64_t r = 0; r < weights.rows; r++)
            rows.append(reinterpret_cast<const char*>(weights.data + r * weights.row_bytes),
                        static_cast<size_t>(bytes_of_row_));
        return nb::bytes(rows.data(), rows.size());
    }

    WeightMatrix weights;

private:
    void require_alone() const { require(bytes_of_row_ == 0, "the matrix lies between others"); }

    static constexpr const char* kNotPacked = "only Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K and Q6_K can be packed";
    std::optional<Bytes> data_;       // keeps the memory alive
    std::shared_ptr<uint8_t> owned_;  // or is the memory
    int64_t bytes_of_row_ = 0;        // where rows of other matrices lie between its own; else 0
};

// A block of a layer with the matrices it needs; the tensors of norms and biases are kept alive by whoever made it.
struct AttentionBlock {
    AttentionBlockJob job;
    nb::object matrices;
};
struct FeedForwardBlock {
    FeedForwardBlockJob job;
    nb::object matrices;
};

// Adds the blocks to the module (block_bindings.cpp).
void bind_blocks(nb::module_& m);
// Adds the CPU's part of split layers (cold_bindings.cpp).
void bind_cold_worker(nb::module_& m);
// What runs the jobs of a `CpuKernels` object (bindings.cpp).
Executor& executor_of(nb::handle kernels);

}  // namespace powerinfer
