// Rows of a matrix, and which of them a mask wants. Included inside the instruction set's namespace.

inline const uint8_t* row_of(const WeightMatrix& m, int64_t row) { return m.data + row * m.row_bytes; }

// The rows from `begin` to `end` that a mask wants, in order. Eight at a time: where a hundredth of the rows is wanted, one
// by one took a quarter of the time of the whole operation.
struct WantedRows {
    const uint8_t* mask;
    int64_t begin, end;
    uint64_t bytes = 0;  // of the mask, of the eight rows before `begin`; those that were returned are 0

    // The next one, or -1.
    int64_t next() {
        while (!bytes) {
            if (begin >= end) return -1;
            const int64_t n = end - begin < 8 ? end - begin : 8;
            __builtin_memcpy(&bytes, mask + begin, static_cast<uint64_t>(n));
            begin += 8;
        }
        const int byte = __builtin_ctzll(bytes) / 8;
        bytes &= ~(uint64_t{255} << 8 * byte);
        return begin - 8 + byte;
    }
};
