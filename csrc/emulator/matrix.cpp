// ldmatrix and mma. The maps from lanes and registers to rows and columns are those of the PTX ISA,
// "Warp-level matrix instructions"; with g = lane / 4 and t = lane % 4.
#include "emulator/matrix.h"

#include <cstring>

#include "emulator/block.h"
#include "emulator/report.h"

#if defined(__x86_64__)
#define FASTATTN_WITH_AVX2 __attribute__((target("avx2,fma")))
#endif

namespace fastattn::emulator {
namespace {

constexpr int kRowBytes = 16;  // of an 8 x 8 matrix of 16-bit elements
constexpr int kMatrixRows = 8;

// ---- ldmatrix ----

void load_matrices(Block& block, Exchange& exchange, int matrices, bool transposed, Site site) {
  uint16_t elements[4][kMatrixRows][kMatrixRows];
  uint32_t offsets[kWarpSize];
  Thread* const last = block.current;
  const int warp = last->warp;
  const Actor actor{warp, Actor::kAllLanes, &block.warps[warp].clock};
  for (int i = 0; i < matrices * kMatrixRows; ++i) {
    block.current = &block.threads[warp * kWarpSize + i];  // whose address it is
    offsets[i] = block.shared.offset_of(exchange.lanes[i].addr, kRowBytes, "ldmatrix", site);
    block.shared.read(offsets[i], kRowBytes, actor, "ldmatrix", site);
    std::memcpy(elements[i / kMatrixRows][i % kMatrixRows], block.shared.at(offsets[i]), kRowBytes);
  }
  block.current = last;
  for (int lane = 0; lane < kWarpSize; ++lane) {
    const int g = lane / 4, t = lane % 4;
    for (int i = 0; i < matrices; ++i) {
      const auto& matrix = elements[i];
      const uint32_t lo = transposed ? matrix[2 * t][g] : matrix[g][2 * t];
      const uint32_t hi = transposed ? matrix[2 * t + 1][g] : matrix[g][2 * t + 1];
      exchange.lanes[lane].a[i] = lo | hi << 16;
    }
  }
  ++block.counters.ldmatrix;
  const uint64_t conflicts = bank_conflicts(offsets, matrices * kMatrixRows, kRowBytes);
  block.counters.ldmatrix_conflicts += conflicts;
  if (conflicts) block.conflict_sites[to_string(site)] += conflicts;
}

// ---- mma ----

void put_pair(uint16_t* dst, uint32_t word) { std::memcpy(dst, &word, sizeof word); }

// Eight at a time, in whatever registers there are.
using Halves = uint16_t __attribute__((vector_size(16)));
using Words = uint32_t __attribute__((vector_size(32)));
using Floats = float __attribute__((vector_size(32)));
constexpr int kVector = 8;
static_assert(kN == kVector, "a row of b and of c is a vector");

// float_of_half() and float_of_bf16() for a vector.
template <Element element>
inline __attribute__((always_inline)) void to_floats(const uint16_t* src, float* dst) {
  Halves bits;
  std::memcpy(&bits, src, sizeof bits);
  const Words words = __builtin_convertvector(bits, Words);
  Words result = words << 16;
  if (element == Element::kHalf) {
    const Words magnitude = (words & 0x7fffu) << 13;
    const Floats scaled = reinterpret_cast<Floats>(magnitude) * 0x1p112f;
    const Words special = reinterpret_cast<Words>(magnitude >= 0x0f800000u);
    result = (special & (magnitude | 0x7f800000u)) | (~special & reinterpret_cast<Words>(scaled)) |
             (words & 0x8000u) << 16;
  }
  std::memcpy(dst, &result, sizeof result);
}

// In float32, by ascending k: what two m16n8k8 give one after the other, and m16n8k16 at once, is
// the same here. A GPU adds up groups of products with more bits and rounds otherwise.
template <Element element>
inline __attribute__((always_inline)) void multiply_elements(Operands& operands) {
  float a[kK], column[kK], b[kK][kN];
  for (int n = 0; n < kN; ++n) {
    for (int k = 0; k < kK; k += kVector) to_floats<element>(&operands.b[n][k], column + k);
    for (int k = 0; k < kK; ++k) b[k][n] = column[k];
  }
  for (int m = 0; m < kM; ++m) {
    for (int k = 0; k < kK; k += kVector) to_floats<element>(&operands.a[m][k], a + k);
    Floats c, row;
    std::memcpy(&c, operands.c[m], sizeof c);
    for (int k = 0; k < kK; ++k) {
      std::memcpy(&row, b[k], sizeof row);
      c += a[k] * row;
    }
    std::memcpy(operands.c[m], &c, sizeof c);
  }
}

using Multiply = void (*)(Operands&);

template <Element element>
void multiply_portably(Operands& operands) {
  multiply_elements<element>(operands);
}

#ifdef FASTATTN_WITH_AVX2
template <Element element>
FASTATTN_WITH_AVX2 void multiply_with_avx2(Operands& operands) {
  multiply_elements<element>(operands);
}
#endif

template <Element element>
Multiply choose_multiply() {
#ifdef FASTATTN_WITH_AVX2
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    return multiply_with_avx2<element>;
  }
#endif
  return multiply_portably<element>;
}

}  // namespace

void put_left(Operands& operands, int lane, const uint32_t* a) {
  const int g = lane / 4, t = lane % 4;
  put_pair(&operands.a[g][2 * t], a[0]);
  put_pair(&operands.a[g + 8][2 * t], a[1]);
  put_pair(&operands.a[g][2 * t + 8], a[2]);
  put_pair(&operands.a[g + 8][2 * t + 8], a[3]);
}

void put_result(Operands& operands, int lane, const float* c) {
  const int g = lane / 4, t = lane % 4;
  std::memcpy(&operands.c[g][2 * t], &c[0], 2 * sizeof(float));
  std::memcpy(&operands.c[g + 8][2 * t], &c[2], 2 * sizeof(float));
}

void get_result(const Operands& operands, int lane, float* c) {
  const int g = lane / 4, t = lane % 4;
  std::memcpy(&c[0], &operands.c[g][2 * t], 2 * sizeof(float));
  std::memcpy(&c[2], &operands.c[g + 8][2 * t], 2 * sizeof(float));
}

void multiply(Operands& operands, Element element) {
  static const Multiply kMultiplyHalf = choose_multiply<Element::kHalf>();
  static const Multiply kMultiplyBf16 = choose_multiply<Element::kBf16>();
  (element == Element::kHalf ? kMultiplyHalf : kMultiplyBf16)(operands);
}

void ldmatrix(uint32_t addr, uint32_t* r, int matrices, bool transposed, Site site) {
  const int operand = matrices * 2 + transposed;
  const Results results = in_whole_warp(
      Operation::kLdmatrix, operand, site, [&](Exchange::Lane& lane) { lane.addr = addr; },
      [&](Exchange& exchange) {
        load_matrices(*current_block, exchange, matrices, transposed, site);
        return true;
      });
  std::memcpy(r, results.own.a, matrices * sizeof(uint32_t));
}

void mma_m16n8k16(float* c, const uint32_t* a, uint32_t b0, uint32_t b1, Element element,
                  Site site) {
  constexpr int kFirstWithBf16 = 80;
  if (element == Element::kBf16 &&
      current_block->launch->options.compute_capability < kFirstWithBf16) {
    report(site, "mma: there is no bfloat16 product before compute capability 8.0");
  }
  const auto deposit = [&](Exchange::Lane& lane) {
    std::memcpy(lane.a, a, sizeof lane.a);
    lane.b[0] = b0;
    lane.b[1] = b1;
    std::memcpy(lane.c, c, sizeof lane.c);
  };
  const auto execute = [&](Exchange& exchange) {
    Operands operands;
    for (int lane = 0; lane < kWarpSize; ++lane) {
      const Exchange::Lane& from = exchange.lanes[lane];
      put_left(operands, lane, from.a);
      put_pair(&operands.b[lane / 4][2 * (lane % 4)], from.b[0]);
      put_pair(&operands.b[lane / 4][2 * (lane % 4) + 8], from.b[1]);
      put_result(operands, lane, from.c);
    }
    multiply(operands, element);
    for (int lane = 0; lane < kWarpSize; ++lane) {
      get_result(operands, lane, exchange.lanes[lane].c);
    }
    ++current_block->counters.mma;
    return true;
  };
  const Results results =
      in_whole_warp(Operation::kMma, static_cast<int>(element), site, deposit, execute);
  std::memcpy(c, results.own.c, sizeof results.own.c);
}

}  // namespace fastattn::emulator
