// Rows of a file as a device holds them: the quants of all rows, and behind them their scales.
#pragma once

#include "executor.hpp"

namespace powerinfer {

// Rows `ids` of `data` (null: the first n), whose blocks are a float16 scale and `quant_bytes` behind it; without
// quants a row is copied whole. quants (n, n_blocks, quant_bytes), scales (n, n_blocks; 2 bytes): where they go.
struct DeviceRowsJob {
    const uint8_t* data;
    int64_t row_bytes;
    const int64_t* ids;
    int64_t n, n_blocks, quant_bytes;
    uint8_t* quants;
    uint8_t* scales;
};

// Returns the bits of the largest magnitude of a finite scale; 0 where there are none.
uint16_t fill_device_rows(const DeviceRowsJob& job, Executor& executor);

}  // namespace powerinfer
