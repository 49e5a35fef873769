// What each block of a grid takes for its item of work (hopper/work.cuh).
#include "emulator/control.h"
#include "hopper/work.cuh"

namespace fastattn::cuda {
namespace {

struct Params {
  AttentionParams attention;
  int32_t* items;  // (blocks, 4): sequence, row0, first head, end of heads
};

constexpr int kThreads = 256;

template <class Tiles>
FASTATTN_KERNEL void work_items_kernel(const Params params) {
  const uint32_t smem = smem_base();
  const WorkItem item = Work<Tiles>::find(params.attention, smem, smem + Work<Tiles>::kBytes);
  if (thread_idx().x != 0) return;
  const Sequence sequence(params.attention, item.sequence);
  HeadPair heads{item.slot, item.slot + 1};
  if (Work<Tiles>::are_paired(params.attention, sequence)) {
    heads = Work<Tiles>::pair(params.attention, item.slot);
  }
  int32_t* const out = params.items + 4 * block_idx().x;
  stg(out, item.sequence), stg(out + 1, item.row0), stg(out + 2, heads.first);
  stg(out + 3, heads.end);
}

template <class Tiles>
int64_t list_items(const AttentionParams& attention, int32_t* items) {
  constexpr uint32_t kSmemBytes = 4096;
  const dim3 grid = Work<Tiles>::grid(attention);
  if (items == nullptr) return grid.x;
  emulator::GlobalBuffers buffers;
  const size_t bytes = (attention.batch_size + 1) * sizeof(int32_t);
  buffers.add("cu_seqlens_q", attention.cu_seqlens_q, bytes, /*writable=*/false);
  buffers.add("cu_seqlens_k", attention.cu_seqlens_k, bytes, /*writable=*/false);
  buffers.add("items", items, 4 * grid.x * sizeof(int32_t), /*writable=*/true);
  launch(work_items_kernel<Tiles>, grid, dim3(kThreads), kSmemBytes, nullptr,
         Params{attention, items});
  return grid.x;
}

}  // namespace
}  // namespace fastattn::cuda

// The number of blocks; fills `items`, (blocks, 4), if it is not null. Tiles are of 128 queries, or
// with by_keys of 512 keys.
extern "C" int64_t work_items(bool by_keys, int64_t batch_size, int64_t heads, int64_t kv_heads,
                              const int32_t* cu_seqlens_q, const int32_t* cu_seqlens_k,
                              int64_t total_q, int64_t total_k, int32_t* items) {
  using namespace fastattn;
  AttentionParams params;
  params.batch_size = batch_size;
  params.num_heads = heads, params.num_heads_kv = kv_heads;
  params.cu_seqlens_q = cu_seqlens_q, params.cu_seqlens_k = cu_seqlens_k;
  // Without cu_seqlens the totals are those of each sequence.
  (cu_seqlens_q != nullptr ? params.total_q : params.seqlen_q) = total_q;
  (cu_seqlens_k != nullptr ? params.total_k : params.seqlen_k) = total_k;
  if (by_keys) return cuda::list_items<cuda::KeyTiles<512, /*kMayPair=*/true>>(params, items);
  return cuda::list_items<cuda::QueryTiles<128, /*kMayPair=*/true>>(params, items);
}
