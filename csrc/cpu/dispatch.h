// The entry points of the CPU kernels, and the services they need from code compiled only once.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "common/params.h"

namespace fastattn::cpu {

void attention_fwd(const AttentionParams& params);
void attention_bwd(const AttentionBwdParams& params);
void layer_norm_fwd(const LayerNormParams& params);
void layer_norm_bwd(const LayerNormBwdParams& params);
void gelu_fwd(const GeluParams& params);
void gelu_bwd(const GeluBwdParams& params);
void hidden_dropout(const HiddenDropoutParams& params);
void matmul(const MatmulParams& params);
// Returns the number of floating-point operations done.
int64_t peak(const PeakParams& params);

// Names of the instruction sets that are compiled in and that this CPU has, best last.
std::vector<std::string> instruction_sets();
// The one in use: the best, or the environment's FASTATTN_CPU_ISA, or the one set last.
std::string instruction_set();
// Uses `name` from now on, or the best for "". Throws std::invalid_argument if it cannot be used.
void set_instruction_set(const std::string& name);

// Whether matmul above is faster than what torch calls: on AMD CPUs, whose AVX-512 the Math Kernel
// Library leaves unused.
bool prefers_own_matmul();
// Up to so many rows of a linear layer, packing the weights takes longer than it saves, and matmul
// reads them where they lie. Inference on one text, against torch's product: with 12 tokens 1.2 to
// 1.5 times as fast, 24: 1.2 to 1.4, 48: 1.1 to 1.3, 90: 1.03 to 1.15 (BERT of width 384 on one and
// two threads, of 768 on one; Zen 4, 2026-11-30).
constexpr int64_t kFewRows = 95;

// Memory of the calling thread, kept for its next call; aligned to a cache line. Null if none.
void* thread_scratch(size_t bytes);

// Fills `order` with the sequences 0 .. batch_size - 1, the one with most rows first.
void longest_first(const int32_t* cu_seqlens, int64_t batch_size, int32_t* order);

// Throws std::bad_alloc; for kernels that found no scratch memory.
[[noreturn]] void throw_out_of_memory();

}  // namespace fastattn::cpu
