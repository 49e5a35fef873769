// Attention on a Hopper GPU (H100, H200): the entry points of the kernels for sm_90a.
//
// They promise what those of cuda/attention.h do, and take the same parameters.
#pragma once

#include "common/params.h"

namespace fastattn::cuda {

constexpr int kHopperMaxHeadDim = 128;

// Throws std::invalid_argument for what is not compiled in.
void hopper_attention_fwd(const AttentionParams& params, void* stream);
void hopper_attention_bwd(const AttentionBwdParams& params, void* stream);

// The last launch of hopper_attention_bwd where the first ones leave dq out; none elsewhere.
void hopper_attention_dq(const AttentionBwdParams& params, void* stream);

}  // namespace fastattn::cuda
