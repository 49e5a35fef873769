// What the operators on rows of hidden states share: how a warp holds a part of a row, the dropout
// mask of that part, sums over a row and over rows.
//
// A warp holds a block of 256 columns, eight a lane: columns 2 * lane and 2 * lane + 1 of each of
// four groups of 64. One call of Philox serves them (common/philox.h), and for each group a warp
// reads 32 neighbouring pairs, which are one or two lines of the cache.
#pragma once

#include <initializer_list>
#include <stdexcept>
#include <string>

#include "common/params.h"
#include "cuda/device.cuh"
#include "cuda/philox.cuh"

namespace fastattn::cuda {

constexpr int kWarpSize = 32;
constexpr int kBlockCols = philox::kHiddenBlock;
constexpr int kLaneCols = kBlockCols / kWarpSize;

// The part of a row that a lane holds; absent columns are 0.
struct LaneRow {
  float v[kLaneCols];
};

// Where a lane's columns lie. With kPaired, pairs of columns are aligned, and there is no half
// pair.
template <bool kPaired>
class LaneCols {
 public:
  __device__ __forceinline__ LaneCols(int64_t col0, int64_t cols)
      : first_(col0 + 2 * (thread_idx().x % kWarpSize)), cols_(cols) {}

  __device__ __forceinline__ int64_t col(int i) const {
    return first_ + i / 2 * philox::kHiddenGroup + i % 2;
  }
  __device__ __forceinline__ bool has(int i) const { return col(i) < cols_; }

  template <class T>
  __device__ __forceinline__ LaneRow load(const T* row) const {
    LaneRow lane;
    FASTATTN_UNROLL
    for (int i = 0; i < kLaneCols; i += 2) {
      float2 pair{0.0f, 0.0f};
      if constexpr (kPaired) {
        if (has(i)) pair = load_pair(row + col(i));
      } else {
        if (has(i)) pair.x = to_float(ldg(row + col(i)));
        if (has(i + 1)) pair.y = to_float(ldg(row + col(i + 1)));
      }
      lane.v[i] = pair.x, lane.v[i + 1] = pair.y;
    }
    return lane;
  }

  template <class T>
  __device__ __forceinline__ void store(T* row, const LaneRow& lane) const {
    FASTATTN_UNROLL
    for (int i = 0; i < kLaneCols; i += 2) {
      if constexpr (kPaired) {
        if (has(i)) store_pair(row + col(i), lane.v[i], lane.v[i + 1]);
      } else {
        if (has(i)) stg(row + col(i), from_float<T>(lane.v[i]));
        if (has(i + 1)) stg(row + col(i + 1), from_float<T>(lane.v[i + 1]));
      }
    }
  }

 private:
  template <class T>
  __device__ __forceinline__ static float2 load_pair(const T* p) {
    if constexpr (sizeof(T) == 2) {
      return unpack2<T>(ldg(reinterpret_cast<const uint32_t*>(p)));
    } else {
      return ldg(reinterpret_cast<const float2*>(p));
    }
  }

  template <class T>
  __device__ __forceinline__ static void store_pair(T* p, float x, float y) {
    if constexpr (sizeof(T) == 2) {
      stg(reinterpret_cast<uint32_t*>(p), pack2<T>(x, y));
    } else {
      stg(reinterpret_cast<float2*>(p), float2{x, y});
    }
  }

  const int64_t first_, cols_;
};

// The dropout of hidden states; nothing happens where the threshold is 0.
struct RowDropout {
  const int64_t* seed_ptr;
  uint32_t threshold;
  float scale;

  template <class Params>
  static RowDropout of(const Params& params) {
    return {params.seed_ptr, params.drop_threshold,
            static_cast<float>(philox::keep_scale(params.drop_threshold))};
  }

  // Multiplies what is kept of a row's block of columns by the scale, and makes the rest 0.
  __device__ __forceinline__ void apply(LaneRow& lane, int64_t row, int64_t block) const {
    if (threshold == 0) return;
    const PhiloxWords words = draw(row, block);
    FASTATTN_UNROLL
    for (int i = 0; i < kLaneCols; ++i) {
      const uint32_t word = words.word[i / 2];
      const uint32_t bits = i % 2 == 0 ? word & 0xFFFFu : word >> 16;
      lane.v[i] = bits >= threshold ? lane.v[i] * scale : 0.0f;
    }
  }

 private:
  __device__ __forceinline__ PhiloxWords draw(int64_t row, int64_t block) const {
    const uint32_t call =
        static_cast<uint32_t>(block) * philox::kCallsPerHiddenBlock + thread_idx().x % kWarpSize;
    return philox4x32(static_cast<uint64_t>(ldg(seed_ptr)), call, static_cast<uint32_t>(row),
                      static_cast<uint32_t>(static_cast<uint64_t>(row) >> 32), philox::kHiddenMark);
  }
};

// A row of a matrix.
template <class T>
__device__ __forceinline__ T* row_of(const MatrixRef& matrix, int64_t row) {
  return static_cast<T*>(matrix.data) + row * matrix.row_stride;
}

__device__ __forceinline__ float warp_sum(float x) {
  FASTATTN_UNROLL
  for (int lane_mask = kWarpSize / 2; lane_mask > 0; lane_mask /= 2) x += shfl_xor(x, lane_mask);
  return x;
}

// Sums over the threads of a block, in the same order in every thread. kSums numbers per warp of
// shared memory from smem_base() on.
template <int kSums>
__device__ __forceinline__ void block_sum(float (&sums)[kSums]) {
  FASTATTN_UNROLL
  for (int i = 0; i < kSums; ++i) sums[i] = warp_sum(sums[i]);
  const uint32_t warps = block_dim().x / kWarpSize;
  if (warps == 1) return;
  const uint32_t warp = thread_idx().x / kWarpSize, base = smem_base();
  constexpr uint32_t kBytes = kSums * sizeof(float);
  sync_threads();  // whoever still reads the sums before these
  if (thread_idx().x % kWarpSize == 0) {
    FASTATTN_UNROLL
    for (int i = 0; i < kSums; ++i) sts(base + warp * kBytes + i * 4, sums[i]);
  }
  sync_threads();
  FASTATTN_UNROLL
  for (int i = 0; i < kSums; ++i) {
    float total = 0.0f;
    for (uint32_t w = 0; w < warps; ++w) total += lds<float>(base + w * kBytes + i * 4);
    sums[i] = total;
  }
}

// ---- on the host ----

// Whether pairs of columns of rows of T can be read at once.
template <class T>
bool is_paired(const MatrixRef& matrix, int64_t cols) {
  return cols % 2 == 0 && matrix.row_stride % 2 == 0 &&
         reinterpret_cast<uintptr_t>(matrix.data) % (2 * sizeof(T)) == 0;
}

// The same of vectors of float32, any of which may be null.
inline bool are_paired(std::initializer_list<const void*> vectors) {
  for (const void* vector : vectors) {
    if (reinterpret_cast<uintptr_t>(vector) % (2 * sizeof(float)) != 0) return false;
  }
  return true;
}

// Starts a kernel.
template <class Args>
void run(const char* op, void (*kernel)(Args), dim3 grid, dim3 block, uint32_t smem_bytes,
         void* stream, const Args& args) {
  const char* error = launch(kernel, grid, block, smem_bytes, stream, args);
  if (error != nullptr) {
    throw std::runtime_error(std::string(op) + ": a CUDA kernel must start; got the error " +
                             error);
  }
}

// Calls body(element), a value whose type is that of the elements.
template <class Body>
void dispatch_hidden(ElementType type, const Body& body) {
  switch (type) {
    case ElementType::kFloat32:
      return body(float{});
    case ElementType::kFloat16:
      return body(half_t{});
    case ElementType::kBFloat16:
      return body(bf16_t{});
    case ElementType::kFloat64:
      break;
  }
  throw std::invalid_argument(
      "hidden states: dtype must be float32, float16 or bfloat16 on a GPU; got float64");
}

// Calls body(true_type or false_type).
template <class Body>
void dispatch_bool(bool value, const Body& body) {
  return value ? body(std::true_type{}) : body(std::false_type{});
}

// Adds up partial sums: total[sum][col] over all parts, for each sum whose total is not null.
void add_partials(const char* op, const ColumnSumsRef& partials, int64_t cols,
                  std::initializer_list<void*> totals, void* stream);

}  // namespace fastattn::cuda
