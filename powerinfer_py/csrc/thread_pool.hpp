// Persistent threads that take the items of one job at a time from an atomic counter; the calling thread takes part.
//
// It knows nothing of kernels. A job is opened, its items are taken, it is closed; only then does run() return. A worker
// that is late (asleep, not scheduled) simply finds the job closed: nobody ever waits for a thread that took no item.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace powerinfer {

class ThreadPool {
public:
    // What runs an item. `thread` is in [0, n_threads()) and unique among the threads of a job; 0 is the caller.
    using ItemFunction = void (*)(void* context, int64_t item, int thread);

    explicit ThreadPool(int n_threads);
    ~ThreadPool();
    ThreadPool(const ThreadPool&) = delete;
    ThreadPool& operator=(const ThreadPool&) = delete;

    // Runs function(context, i, thread) once for every i in [0, n_items). Not reentrant: callers are serialised outside.
    void run(int64_t n_items, ItemFunction function, void* context);

    template <typename Body>
    void run(int64_t n_items, const Body& body) {
        run(
            n_items,
            [](void* context, int64_t item, int thread) { (*static_cast<const Body*>(context))(item, thread); },
            const_cast<Body*>(&body));
    }

    int n_threads() const { return n_threads_; }

private:
    void stop();
    void work(int thread);
    void take_items(int thread);
    bool await_job(uint32_t& seen);  // false when the pool closes

    const int n_threads_;
    const bool may_spin_;
    // A thread's part of a job, neighbouring items: it reads its memory as one stream, which the hardware then fetches
    // ahead. Measured on Zen 4, two threads, rows of 2304 bytes, 16 an item: 34 GB/s this way, 28 when threads took items
    // in turns. Who has finished takes items of the others. Each counter has a cache line of its own.
    struct alignas(64) Share {
        std::atomic<int64_t> next{0};
        int64_t end = 0;
    };
    std::unique_ptr<Share[]> shares_;
    alignas(64) std::atomic<uint32_t> epoch_{0};   // rises when a job opens and when the pool closes; sleepers wait on it
    alignas(64) std::atomic<uint32_t> active_{0};  // workers that may be reading the job
    std::atomic<bool> open_{false};
    std::atomic<bool> stopping_{false};
    ItemFunction function_ = nullptr;
    void* context_ = nullptr;
    std::vector<std::thread> workers_;
};

}  // namespace powerinfer
