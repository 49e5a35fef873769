// Operators on hidden states on a GPU: the entry points of the kernels.
//
// Every pointer in the parameters is one of the device (of the host in an emulated build), the seed
// included. A call launches on `stream`, a cudaStream_t, and returns: it allocates nothing, waits
// for nothing, and can be captured in a CUDA graph. Element types are float32, float16 and
// bfloat16; vectors and statistics are float32.
//
// All throw std::invalid_argument for an element type that is not compiled in, and
// std::runtime_error if a launch fails.
#pragma once

#include "common/params.h"

namespace fastattn::cuda {

constexpr int64_t kMaxHiddenSize = 6144;  // of LayerNorm; the others take rows of any length

void layer_norm_fwd(const LayerNormParams& params, void* stream);

// Rows are divided among params.partials.parts blocks, of which there must be at least one.
void layer_norm_bwd(const LayerNormBwdParams& params, void* stream);

void gelu_fwd(const GeluParams& params, void* stream);

// With dbias, rows are divided among params.partials.parts rows of blocks.
void gelu_bwd(const GeluBwdParams& params, void* stream);

void hidden_dropout(const HiddenDropoutParams& params, void* stream);

}  // namespace fastattn::cuda
