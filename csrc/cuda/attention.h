// Attention on a GPU: the entry points of the kernels.
//
// Every pointer in the parameters is one of the device (of the host in an emulated build), the
// lengths and the seed included. A call launches on `stream`, a cudaStream_t, and returns: it
// allocates nothing, waits for nothing, and can be captured in a CUDA graph. Grids follow from the
// sizes of tensors, so nobody has to know the longest of packed sequences.
#pragma once

#include "common/params.h"

namespace fastattn::cuda {

constexpr int kMaxHeadDim = 128;

// Fills every row of out and lse; packed rows that belong to no sequence get 0 and -inf.
//
// dtype is float16 or bfloat16. Strides and head_dim may be any, but rows are read in steps of 16
// bytes, hence faster, if pointers and strides are multiples of that and head_dim is one of 8.
// In the packed layout total_q and total_k count the rows of the tensors.
//
// Throws std::invalid_argument if the parameters name what is not compiled in, and
// std::runtime_error if a launch fails.
void attention_fwd(const AttentionParams& params, void* stream);

// Fills every row of dq, dk and dv, with 0 where a packed row belongs to no sequence.
//
// delta is memory of the shape of lse, from the caller. Every element of dbias is filled if it is
// not null: its rows and columns are those of the bias, its first two sizes may be those of the
// bias, or the number of sequences and of heads. A size of 1 is summed within the kernel, by blocks
// of which there is one for each tile of dbias: where few tiles are left, the caller adds up.
void attention_bwd(const AttentionBwdParams& params, void* stream);

}  // namespace fastattn::cuda
