// The CPU's part of a split layer as the host functions of a stream start and await it: no Python, no CUDA.
//
// A stream calls submit(job), goes on with the device's kernels, and calls wait(job) before the sum is copied up; a stream
// of its own calls run(job). No function throws, takes the GIL or calls CUDA; submit returns at once, wait spins for a
// moment and then sleeps. What failed is in the worker's error flag, to be read after the step. Jobs, what they point to,
// and the worker outlive every call.
#pragma once

#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

#include "executor.hpp"
#include "jobs.hpp"

namespace powerinfer {

class ColdWorker;

// Cold neurons of one layer for a fixed number of tokens. h (n_tokens, n_embd), y (n_tokens, n_embd) and bits, the mask
// (n_tokens, (n_ff + 7) / 8; neuron j is bit j % 8 of byte j / 8) or null for all neurons, lie in memory that a device
// copies from and to.
struct ColdJob {
    ColdWorker* worker;
    Executor* executor;
    FeedForwardBlockJob block;
    const float* h;
    const uint8_t* bits;
    float* y;
    int64_t n_tokens;
    std::vector<uint8_t> mask;  // (n_tokens, n_ff), scratch
    std::atomic<int64_t> counts[4];  // gate, up and down products, and fired neurons, since they were last taken
};

// A thread that computes one job after the other.
class ColdWorker {
public:
    ColdWorker();
    ~ColdWorker();
    ColdWorker(const ColdWorker&) = delete;
    ColdWorker& operator=(const ColdWorker&) = delete;

    // The job before must have been waited for; else nothing is started and the error flag is set.
    void submit(ColdJob& job) noexcept;
    // Returns when the job submitted last is done; at once if there is none.
    void wait() noexcept;
    // Computes a job on the calling thread, as if it had been submitted and waited for.
    void run(ColdJob& job) noexcept;
    // Whether anything has failed since the last call.
    bool take_error() noexcept { return failed_.exchange(false); }

private:
    void work() noexcept;
    void compute(ColdJob& job) noexcept;
    void finish() noexcept;

    // In the place of a job: nobody's any more, and one that another thread computes.
    static inline ColdJob kStop{}, kTaken{};

    std::atomic<ColdJob*> job_{nullptr};
    std::atomic<bool> stopping_{false};
    std::atomic<bool> may_spin_{false};
    std::atomic<bool> failed_{false};
    std::thread thread_;
};

// Bits to a byte a neuron, n of them.
void unpack_bits(const uint8_t* bits, int64_t n, uint8_t* mask);

// Computes a job on the calling thread. May throw std::bad_alloc.
void run_cold_job(ColdJob& job);

}  // namespace powerinfer

// The host functions, of the type that cuLaunchHostFunc takes: void (*)(void* job).
extern "C" {
void powerinfer_cold_submit(void* job) noexcept;
void powerinfer_cold_wait(void* job) noexcept;
// Both in one, for a stream of its own.
void powerinfer_cold_run(void* job) noexcept;
}
