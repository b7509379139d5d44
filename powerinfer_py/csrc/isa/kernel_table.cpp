// The kernels, compiled once per instruction set into a namespace of its own (see CMakeLists.txt).
//
// Everything below has internal linkage, and no header with inline functions of the standard library is included: of an
// inline function that several of these files shared, the linker would keep one copy, perhaps the AVX-512 one, for all.
#include "kernel_table.hpp"

#include <cstdint>
#if !defined(POWERINFER_ISA_scalar)
#include <immintrin.h>
#endif

namespace powerinfer {
namespace POWERINFER_ISA_NAMESPACE {

namespace {

template <WeightType type>
struct Unpack;
template <WeightType type>
struct Summands;

#include "isa/blocks.hpp"
#if defined(POWERINFER_ISA_avx512) || defined(POWERINFER_ISA_avx512vnni)
#include "isa/vector_avx512.hpp"
#include "isa/lanes_avx512.hpp"
#if defined(POWERINFER_ISA_avx512vnni)
constexpr const char* kName = "avx512vnni";
#else
constexpr const char* kName = "avx512";
#endif
#elif defined(POWERINFER_ISA_avx2)
#include "isa/vector_avx2.hpp"
#include "isa/lanes_avx2.hpp"
constexpr const char* kName = "avx2";
#else
#include "isa/vector_scalar.hpp"
#include "isa/lanes_scalar.hpp"
constexpr const char* kName = "scalar";
#endif
#include "isa/unpack.hpp"
#include "isa/products.hpp"
#include "isa/packed_tokens.hpp"
#include "isa/packed_rows.hpp"
#include "isa/packed.hpp"
#include "isa/matrix_rows.hpp"
#include "isa/striped.hpp"
#include "isa/linear.hpp"
#include "isa/accumulate.hpp"
#include "isa/token_wise.hpp"
#include "isa/quantise.hpp"
#include "isa/attention.hpp"
#include "isa/activation.hpp"
#include "isa/neurons.hpp"
#include "isa/quantise_k.hpp"

}  // namespace

extern const KernelTable kernel_table;
const KernelTable kernel_table = {
    kName, linear_tile, accumulate_block, neurons_block, combine_partials, accumulate_strip, quantise_token,
    pack_row, quantise_range, copy_rows, norm, rope, attention_store, attention_item,
    relu_range, predict_range, fire_range, hide_range, add_range,
};

}  // namespace POWERINFER_ISA_NAMESPACE
}  // namespace powerinfer
