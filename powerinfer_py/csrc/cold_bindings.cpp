// The CPU's part of a split layer as Python prepares it: jobs over addresses, the functions that a stream calls, and steps
// that are followed.
#include <nanobind/stl/pair.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <memory>
#include <tuple>
#include <utility>
#include <vector>

#include "bindings.hpp"
#include "cold_follower.hpp"
#include "cold_worker.hpp"

namespace powerinfer {

namespace {

// A job with what it needs to stay alive; its address is what the host functions are given. A step that failed between
// submit and wait drops its job while the worker may still compute it: the job then goes when the worker is done.
struct BoundColdJob {
    std::unique_ptr<ColdJob> job;
    nb::object worker, kernels, block;

    BoundColdJob(std::unique_ptr<ColdJob> made, nb::object its_worker, nb::object its_kernels, nb::object its_block)
        : job(std::move(made)),
          worker(std::move(its_worker)),
          kernels(std::move(its_kernels)),
          block(std::move(its_block)) {}
    BoundColdJob(const BoundColdJob&) = delete;
    BoundColdJob& operator=(const BoundColdJob&) = delete;
    ~BoundColdJob() {
        // The worker never takes the GIL, which whoever drops the last reference holds.
        job->worker->wait();
    }

    uintptr_t address() const { return reinterpret_cast<uintptr_t>(job.get()); }

    std::tuple<int64_t, int64_t, int64_t, int64_t> take_counts() {
        return {job->counts[0].exchange(0), job->counts[1].exchange(0), job->counts[2].exchange(0),
                job->counts[3].exchange(0)};
    }
};

void job_init(BoundColdJob* self, nb::object worker, nb::object kernels, nb::object block, uintptr_t h, uintptr_t bits,
              uintptr_t y, int64_t n_tokens) {
    require(n_tokens > 0 && n_tokens < (int64_t{1} << 31), "the number of tokens must be in [1, 2^31)");
    require(h != 0 && y != 0 && h != y, "h and y must be two places");
    auto job = std::make_unique<ColdJob>();
    job->worker = &nb::cast<ColdWorker&>(worker);
    job->executor = &executor_of(kernels);
    job->block = nb::cast<const FeedForwardBlock&>(block).job;
    job->h = reinterpret_cast<const float*>(h);
    job->bits = reinterpret_cast<const uint8_t*>(bits);
    job->y = reinterpret_cast<float*>(y);
    job->n_tokens = n_tokens;
    if (bits) job->mask.resize(static_cast<size_t>(n_tokens * job->block.n_ff));
    new (self) BoundColdJob(std::move(job), worker, kernels, block);
}

// A step's jobs and the flags between the two sides, with what they need to stay alive: it goes when nobody follows any
// more.
struct BoundColdSequence {
    ColdSequence followed;
    nb::object follower, memory;
    std::vector<nb::object> jobs;

    BoundColdSequence(ColdSequence its_jobs, nb::object its_follower, nb::object of_flags, std::vector<nb::object> kept)
        : followed(std::move(its_jobs)),
          follower(std::move(its_follower)),
          memory(std::move(of_flags)),
          jobs(std::move(kept)) {}
    BoundColdSequence(const BoundColdSequence&) = delete;
    BoundColdSequence& operator=(const BoundColdSequence&) = delete;
    // The thread that follows never takes the GIL.
    ~BoundColdSequence() { nb::cast<ColdFollower&>(follower).abandon(&followed); }
};

void sequence_init(BoundColdSequence* self, nb::object follower, std::vector<nb::object> jobs,
                   const std::vector<std::pair<uintptr_t, uintptr_t>>& flags, nb::object memory) {
    nb::cast<ColdFollower&>(follower);  // or a TypeError
    require(jobs.size() == flags.size(), "every job has two flags");
    ColdSequence followed;
    for (size_t i = 0; i < jobs.size(); i++) {
        const auto [begun, done] = flags[i];
        require(begun != 0 && done != 0 && begun != done && begun % 4 == 0 && done % 4 == 0, "a job has two flags");
        followed.push_back({nb::cast<BoundColdJob&>(jobs[i]).job.get(), reinterpret_cast<uint32_t*>(begun),
                            reinterpret_cast<uint32_t*>(done)});
    }
    new (self) BoundColdSequence(std::move(followed), std::move(follower), std::move(memory), std::move(jobs));
}

using HostFunction = void (*)(void*) noexcept;

uintptr_t address_of(HostFunction function) { return reinterpret_cast<uintptr_t>(function); }

}  // namespace

void bind_cold_worker(nb::module_& m) {
    nb::class_<ColdWorker>(m, "ColdWorker")
        .def(nb::init<>())
        .def("wait", &ColdWorker::wait, nb::call_guard<nb::gil_scoped_release>())
        .def("take_error", &ColdWorker::take_error);
    nb::class_<BoundColdJob>(m, "ColdJob")
        .def("__init__", &job_init, nb::arg("worker"), nb::arg("kernels"), nb::arg("block"), nb::arg("h"),
             nb::arg("bits"), nb::arg("y"), nb::arg("n_tokens"))
        .def_prop_ro("address", &BoundColdJob::address)
        .def("take_counts", &BoundColdJob::take_counts);
    nb::class_<BoundColdSequence>(m, "ColdSequence")
        .def("__init__", &sequence_init, nb::arg("follower"), nb::arg("jobs"), nb::arg("flags"),
             nb::arg("memory"));
    nb::class_<ColdFollower>(m, "ColdFollower")
        .def(nb::init<>())
        .def("follow",
             [](ColdFollower& self, const BoundColdSequence& step) {
                 require(&nb::cast<ColdFollower&>(step.follower) == &self, "the sequence is another follower's");
                 return self.follow(step.followed);
             },
             nb::arg("sequence"))
        .def("abandon", [](ColdFollower& self) { self.abandon(); }, nb::call_guard<nb::gil_scoped_release>())
        .def("take_error", &ColdFollower::take_error);
    m.def("await_flag",
          [](uintptr_t flag, double seconds) {
              require(flag != 0 && flag % 4 == 0, "a flag lies at a multiple of 4");
              const nb::gil_scoped_release no_gil;
              return await_flag(reinterpret_cast<const uint32_t*>(flag), seconds);
          },
          nb::arg("flag"), nb::arg("seconds"));
    m.def("raise_flag",
          [](uintptr_t flag) {
              require(flag != 0 && flag % 4 == 0, "a flag lies at a multiple of 4");
              raise_flag(reinterpret_cast<uint32_t*>(flag));
          },
          nb::arg("flag"));
    m.def("cold_host_functions", [] {
        return std::make_tuple(address_of(&powerinfer_cold_submit), address_of(&powerinfer_cold_wait),
                               address_of(&powerinfer_cold_run));
    });
}

}  // namespace powerinfer
