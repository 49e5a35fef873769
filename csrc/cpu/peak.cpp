// The most that the arithmetic of the kernels could reach on this machine: multiply-adds that wait
// for nothing but themselves, with all their operands in registers.
//
//     x = x * half + half      on every lane of every chain, from x = 1, which it stays
//
// so no value becomes denormal or infinite, which would be slower on some CPUs. Threads do the same
// work each; the caller takes the time.
#include "cpu/numbers.h"
#include "cpu/parallel.h"

namespace fastattn::cpu::FASTATTN_CPU_ISA {
namespace {

// Chains enough to cover the latency of an instruction, few enough for the 32 registers of AVX-512
// and the 16 of other instruction sets.
constexpr int kChains = kVecBytes == 64 ? 24 : 12;

template <class Math, class Element>
int64_t run(const PeakParams& params) {
  using Word = typename Math::Word;
  using Stat = typename Math::Stat;
  // Read through volatile, each chain by itself: of constants, the compiler would find out the
  // result, and of equal chains it would compute one.
  const volatile float one_in_memory = 1.0f, half_in_memory = 0.5f;
  const Stat addend_lane = static_cast<Stat>(half_in_memory);
  const Element half_element = from_float<Element>(addend_lane);
  const Vec<Word> half = splat<Word>(Math::word(&half_element, 0));
  const Vec<Stat> addend = splat<Stat>(addend_lane);
  parallel_for(params.num_threads, params.num_threads, sizeof(Vec<Stat>),
               [&](int64_t /*thread*/, void* sink) {
                 Vec<Stat> x[kChains];
                 for (Vec<Stat>& chain : x) chain = splat<Stat>(static_cast<Stat>(one_in_memory));
                 for (int64_t round = 0; round < params.rounds; ++round) {
#pragma GCC unroll 24
                   for (Vec<Stat>& chain : x) {
                     chain = Math::multiply_add(reinterpret_cast<Vec<Word>>(chain), half, addend);
                   }
                 }
                 Vec<Stat> sum = x[0];
                 for (int i = 1; i < kChains; ++i) sum += x[i];
                 store(static_cast<Stat*>(sink), sum);
               });
  return params.rounds * params.num_threads * kChains * kLanes<Stat> * Math::kPair * 2;
}

}  // namespace

int64_t peak(const PeakParams& params) {
  int64_t flops = 0;
  dispatch_element(params.dtype, [&](auto math, auto element) {
    flops = run<decltype(math), decltype(element)>(params);
  });
  return flops;
}

}  // namespace fastattn::cpu::FASTATTN_CPU_ISA
