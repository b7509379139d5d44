#include "thread_pool.hpp"

#include "spin.hpp"

namespace powerinfer {

// With more threads than cores a spinning thread would hold the core that the working one needs.
ThreadPool::ThreadPool(int n_threads)
    : n_threads_(n_threads),
      may_spin_(n_threads <= static_cast<int>(std::thread::hardware_concurrency())),
      shares_(new Share[static_cast<size_t>(n_threads)]) {
    try {
        for (int i = 1; i < n_threads; i++) workers_.emplace_back([this, i] { work(i); });
    } catch (...) {
        // The system gives no more threads. Those that run must end before the vector of them may.
        stop();
        throw;
    }
}

ThreadPool::~ThreadPool() { stop(); }

void ThreadPool::stop() {
    stopping_.store(true);
    epoch_.fetch_add(1);
    epoch_.notify_all();
    for (auto& worker : workers_) worker.join();
}

void ThreadPool::run(int64_t n_items, ItemFunction function, void* context) {
    if (n_items <= 1 || n_threads_ == 1) {
        for (int64_t i = 0; i < n_items; i++) function(context, i, 0);
        return;
    }
    for (int i = 0; i < n_threads_; i++) {
        shares_[i].next.store(n_items * i / n_threads_);
        shares_[i].end = n_items * (i + 1) / n_threads_;
    }
    function_ = function;
    context_ = context;
    open_.store(true);
    epoch_.fetch_add(1);
    epoch_.notify_all();
    take_items(0);
    // All items are taken. Closing before looking at active_ is what makes the fields above safe to overwrite: a worker
    // raises active_ first and looks at open_ second (both sequentially consistent), so either it is seen here and
    // waited for, or it sees the job closed and reads nothing.
    open_.store(false);
    const auto idle = [this] { return active_.load() == 0; };
    if (may_spin_ && spin(idle)) return;
    for (uint32_t n = active_.load(); n != 0; n = active_.load()) active_.wait(n);
}

void ThreadPool::take_items(int thread) {
    for (int i = 0; i < n_threads_; i++) {
        Share& share = shares_[(thread + i) % n_threads_];
        for (int64_t item = share.next.fetch_add(1); item < share.end; item = share.next.fetch_add(1))
            function_(context_, item, thread);
    }
}

// The epoch is read before stopping_, and stop() writes them the other way round: who has seen the pool's last epoch, on
// which nobody will be woken again, has seen that it stops.
bool ThreadPool::await_job(uint32_t& seen) {
    const auto changed = [this, seen] { return epoch_.load() != seen; };
    if (!(may_spin_ && spin(changed))) epoch_.wait(seen);
    seen = epoch_.load();
    return !stopping_.load();
}

void ThreadPool::work(int thread) {
    uint32_t seen = 0;
    while (await_job(seen)) {
        active_.fetch_add(1);
        if (open_.load()) take_items(thread);
        if (active_.fetch_sub(1) == 1) active_.notify_all();
    }
}

}  // namespace powerinfer
