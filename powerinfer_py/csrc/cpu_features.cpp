// Which instruction sets this CPU and this operating system support.
#include "executor.hpp"

#if defined(POWERINFER_HAS_X86)
#include <cpuid.h>
#endif

namespace powerinfer {

namespace {

#if defined(POWERINFER_HAS_X86)
// Not every compiler's __builtin_cpu_supports knows f16c. It uses the AVX registers, so AVX's own check covers the rest.
bool has_f16c() {
    unsigned a = 0, b = 0, c = 0, d = 0;
    return __get_cpuid(1, &a, &b, &c, &d) != 0 && (c & (1u << 29)) != 0;
}
#endif

}  // namespace

// __builtin_cpu_supports reads cpuid and, through XGETBV, whether the operating system saves the wide registers.
AvailableKernels available_kernels() {
    AvailableKernels found{{&isa_scalar::kernel_table}, 1};
#if defined(POWERINFER_HAS_X86)
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
    if (avx2) found.tables[found.n++] = &isa_avx2::kernel_table;
    const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    if (avx512) found.tables[found.n++] = &isa_avx512::kernel_table;
    if (avx512 && __builtin_cpu_supports("avx512vnni")) found.tables[found.n++] = &isa_avx512vnni::kernel_table;
#endif
    return found;
}

}  // namespace powerinfer
