// What runs jobs: one instruction set's kernels, a thread pool, and scratch memory that grows and is kept.
// One object per engine; nothing is global, so several can live in one process.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <new>

#include "kernel_table.hpp"
#include "thread_pool.hpp"

namespace powerinfer {

// Memory that is only ever as large as the largest use so far; contents do not survive a resize. It begins with a cache
// line, so that whole registers read from it never straddle two.
template <typename T>
class Scratch {
public:
    T* reserve(int64_t n) {
        if (n > capacity_) {
            data_.reset();
            capacity_ = 0;
            data_.reset(new (kLine) T[static_cast<size_t>(n)]);
            capacity_ = n;
        }
        return data_.get();
    }

private:
    static constexpr std::align_val_t kLine{64};
    struct Free {
        void operator()(T* p) const { ::operator delete[](p, kLine); }
    };
    std::unique_ptr<T[], Free> data_;
    int64_t capacity_ = 0;
};

struct Executor {
    Executor(const KernelTable& kernel_table, int n_threads) : kernels(kernel_table), pool(n_threads) {}

    const KernelTable& kernels;
    ThreadPool pool;
    // Held for the whole of an operation, of a block too: callers on several threads take turns.
    std::recursive_mutex busy;
    Scratch<int32_t> row_lists;
    Scratch<float> partials;
    Scratch<float> strips;
    Scratch<float> scores;
    Scratch<float> activations;  // between the operations of a block
    Scratch<float> attended;     // of a layer whose FFN sees its input
    Scratch<uint8_t> masks;
    Scratch<float> striped;      // the tokens of a product
    Scratch<int8_t> quantised;
    Scratch<float> quantised_scales;
    Scratch<int32_t> quantised_sums;
};

// Kernel tables this CPU can run (operating system support included), best last; never empty.
struct AvailableKernels {
    const KernelTable* tables[4];
    int n;
};
AvailableKernels available_kernels();

}  // namespace powerinfer
