#include "device_rows.hpp"

#include <algorithm>
#include <atomic>
#include <cstring>

namespace powerinfer {

namespace {

// An item is about as much as a core copies in some microseconds.
constexpr int64_t kItemBytes = 65536;
constexpr uint16_t kMagnitude = 0x7fff, kInfinity = 0x7c00;

// A size that is known lets a copy be two instructions.
template <int64_t kQuantBytes>
uint16_t part_row(const uint8_t* row, int64_t n_blocks, uint8_t* quants, uint8_t* scales) {
    uint16_t largest = 0;
    for (int64_t b = 0; b < n_blocks; b++) {
        const uint8_t* block = row + b * (2 + kQuantBytes);
        uint16_t scale;
        std::memcpy(&scale, block, 2);
        std::memcpy(scales + 2 * b, block, 2);
        std::memcpy(quants + b * kQuantBytes, block + 2, kQuantBytes);
        const uint16_t magnitude = scale & kMagnitude;
        if (magnitude < kInfinity) largest = std::max(largest, magnitude);
    }
    return largest;
}

uint16_t fill_row(const DeviceRowsJob& job, int64_t i) {
    const uint8_t* row = job.data + (job.ids ? job.ids[i] : i) * job.row_bytes;
    if (job.quant_bytes == 0) {
        std::memcpy(job.quants + i * job.row_bytes, row, static_cast<size_t>(job.row_bytes));
        return 0;
    }
    uint8_t* quants = job.quants + i * job.n_blocks * job.quant_bytes;
    uint8_t* scales = job.scales + i * job.n_blocks * 2;
    return job.quant_bytes == 16 ? part_row<16>(row, job.n_blocks, quants, scales)
                                 : part_row<32>(row, job.n_blocks, quants, scales);
}

}  // namespace

uint16_t fill_device_rows(const DeviceRowsJob& job, Executor& executor) {
    const std::lock_guard lock(executor.busy);
    const int64_t item_rows = std::max<int64_t>(1, kItemBytes / std::max<int64_t>(job.row_bytes, 1));
    std::atomic<uint16_t> largest{0};
    executor.pool.run((job.n + item_rows - 1) / item_rows, [&](int64_t item, int) {
        uint16_t mine = 0;
        for (int64_t i = item * item_rows; i < std::min((item + 1) * item_rows, job.n); i++)
            mine = std::max(mine, fill_row(job, i));
        uint16_t seen = largest.load(std::memory_order_relaxed);
        while (seen < mine && !largest.compare_exchange_weak(seen, mine, std::memory_order_relaxed)) {
        }
    });
    return largest.load(std::memory_order_relaxed);
}

}  // namespace powerinfer
