#include "cpu/dispatch.h"

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <new>
#include <numeric>
#include <stdexcept>

namespace fastattn::cpu {

#define FASTATTN_DECLARE(isa)                             \
  namespace isa {                                         \
  void attention_fwd(const AttentionParams& params);      \
  void attention_bwd(const AttentionBwdParams& params);   \
  void layer_norm_fwd(const LayerNormParams& params);     \
  void layer_norm_bwd(const LayerNormBwdParams& params);  \
  void gelu_fwd(const GeluParams& params);                \
  void gelu_bwd(const GeluBwdParams& params);             \
  void hidden_dropout(const HiddenDropoutParams& params); \
  void matmul(const MatmulParams& params);                \
  int64_t peak(const PeakParams& params);                 \
  }
FASTATTN_DECLARE(baseline)
FASTATTN_DECLARE(avx2)
FASTATTN_DECLARE(avx512)
FASTATTN_DECLARE(avx512_bf16)
#undef FASTATTN_DECLARE

namespace {

struct Kernels {
  const char* name;
  bool (*supported)();
  void (*attention_fwd)(const AttentionParams&);
  void (*attention_bwd)(const AttentionBwdParams&);
  void (*layer_norm_fwd)(const LayerNormParams&);
  void (*layer_norm_bwd)(const LayerNormBwdParams&);
  void (*gelu_fwd)(const GeluParams&);
  void (*gelu_bwd)(const GeluBwdParams&);
  void (*hidden_dropout)(const HiddenDropoutParams&);
  void (*matmul)(const MatmulParams&);
  int64_t (*peak)(const PeakParams&);
};
#define FASTATTN_KERNELS(isa)                                                                      \
  isa::attention_fwd, isa::attention_bwd, isa::layer_norm_fwd, isa::layer_norm_bwd, isa::gelu_fwd, \
      isa::gelu_bwd, isa::hidden_dropout, isa::matmul, isa::peak

// From slow to fast.
const Kernels kCompiled[] = {
    {"baseline", [] { return true; }, FASTATTN_KERNELS(baseline)},
#ifdef FASTATTN_CPU_HAVE_AVX2
    {"avx2",
     [] {
       return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
              __builtin_cpu_supports("f16c");
     },
     FASTATTN_KERNELS(avx2)},
#endif
#ifdef FASTATTN_CPU_HAVE_AVX512
    {"avx512",
     [] {
       return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
              __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
     },
     FASTATTN_KERNELS(avx512)},
#endif
#ifdef FASTATTN_CPU_HAVE_AVX512_BF16
    {"avx512_bf16",
     [] {
       return __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
              __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bf16");
     },
     FASTATTN_KERNELS(avx512_bf16)},
#endif
};
#undef FASTATTN_KERNELS

// Returns the instruction set of that name, or the best for "".
const Kernels* find(const std::string& name) {
  const Kernels* found = nullptr;
  for (const Kernels& kernels : kCompiled) {
    if (kernels.supported() && (name.empty() || name == kernels.name)) found = &kernels;
  }
  if (found != nullptr) return found;
  std::string usable;
  for (const std::string& one : instruction_sets()) usable += " " + one;
  throw std::invalid_argument("FASTATTN_CPU_ISA: the instruction set must be one of" + usable +
                              " on this machine; got " + name + ". Unset it to use the best.");
}

const Kernels*& current() {
  static const Kernels* kernels = [] {
    const char* wanted = std::getenv("FASTATTN_CPU_ISA");
    return find(wanted == nullptr ? "" : wanted);
  }();
  return kernels;
}

}  // namespace

void attention_fwd(const AttentionParams& params) { current()->attention_fwd(params); }
void attention_bwd(const AttentionBwdParams& params) { current()->attention_bwd(params); }
void layer_norm_fwd(const LayerNormParams& params) { current()->layer_norm_fwd(params); }
void layer_norm_bwd(const LayerNormBwdParams& params) { current()->layer_norm_bwd(params); }
void gelu_fwd(const GeluParams& params) { current()->gelu_fwd(params); }
void gelu_bwd(const GeluBwdParams& params) { current()->gelu_bwd(params); }
void hidden_dropout(const HiddenDropoutParams& params) { current()->hidden_dropout(params); }
void matmul(const MatmulParams& params) { current()->matmul(params); }
int64_t peak(const PeakParams& params) { return current()->peak(params); }

std::vector<std::string> instruction_sets() {
  std::vector<std::string> names;
  for (const Kernels& kernels : kCompiled) {
    if (kernels.supported()) names.emplace_back(kernels.name);
  }
  return names;
}

std::string instruction_set() { return current()->name; }

void set_instruction_set(const std::string& name) { current() = find(name); }

bool prefers_own_matmul() {
#if defined(__x86_64__)
  return __builtin_cpu_is("amd") && instruction_set().rfind("avx512", 0) == 0;
#else
  return false;
#endif
}

void* thread_scratch(size_t bytes) {
  struct Free {
    void operator()(void* p) const { std::free(p); }
  };
  thread_local std::unique_ptr<void, Free> memory;
  thread_local size_t capacity = 0;
  if (bytes > capacity) {
    constexpr size_t kLine = 64;
    memory.reset();  // first, so that the old and the new block are never held together
    capacity = (bytes + kLine - 1) / kLine * kLine;
    memory.reset(std::aligned_alloc(kLine, capacity));
    if (memory == nullptr) capacity = 0;
  }
  return memory.get();
}

void longest_first(const int32_t* cu_seqlens, int64_t batch_size, int32_t* order) {
  std::iota(order, order + batch_size, 0);
  if (cu_seqlens == nullptr) return;
  const auto length = [&](int32_t i) { return cu_seqlens[i + 1] - cu_seqlens[i]; };
  std::stable_sort(order, order + batch_size,
                   [&](int32_t a, int32_t b) { return length(a) > length(b); });
}

void throw_out_of_memory() { throw std::bad_alloc(); }

}  // namespace fastattn::cpu
