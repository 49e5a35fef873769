// What happens to a score between the matrix product and the softmax, for forward and backward:
//
//   s2 = log2(e) * (softcap(softmax_scale * s) + bias - slope * |row + diagonal - col|)
//   s2 = -inf where the key is padding, past the end, or outside the window
//
// Everything after this is in powers of two: p = 2^(s2 - lse2) with lse2 = log2(e) * lse.
//
// A thread applies the rule to accumulators of 16 x 8 tiles side by side. In those of dk and dv
// rows are keys: kTransposed.
#pragma once

#include "cuda/tile.cuh"

namespace fastattn::cuda {

constexpr float kLog2E = 1.4426950408889634f;
constexpr float kLn2 = 0.6931471805599453f;
constexpr float kLargest = 3.402823466e38f;
constexpr float kInfinity = __builtin_huge_valf();

// The place of a thread's accumulators in the scores of a head: (row0, col0) is the query and the
// key of its first one.
template <bool kTransposed>
struct ScorePlace {
  int row0, col0;

  // For the 16 x 8 tiles side by side whose first score is (row0, col0).
  __device__ __forceinline__ static ScorePlace of_tile(int row0, int col0) {
    if (kTransposed) return {row0 + quad_col(), col0 + quad_row()};
    return {row0 + quad_row(), col0 + quad_col()};
  }
  __device__ __forceinline__ int row(int n, int i) const {
    return row0 + (kTransposed ? 8 * n + i % 2 : 8 * (i / 2));
  }
  __device__ __forceinline__ int col(int n, int i) const {
    return col0 + (kTransposed ? 8 * (i / 2) : 8 * n + i % 2);
  }
};

// Whether more happens to a score than a multiplication by a positive number.
__host__ __device__ __forceinline__ bool has_score_options(const AttentionParams& params) {
  return params.bias.data != nullptr || params.alibi_slopes != nullptr || params.softcap > 0 ||
         !(params.softmax_scale > 0);
}

// The rule for one head of one sequence.
template <class Traits>
class ScoreRule {
 public:
  __device__ __forceinline__ ScoreRule(const AttentionParams& params, const Sequence& sequence,
                                       int head)
      : params_(params),
        seqlen_q_(sequence.seqlen_q),
        seqlen_k_(sequence.seqlen_k),
        scale_(static_cast<float>(params.softmax_scale)),
        only_scale_(!Traits::kGeneral || !has_score_options(params)) {
    if constexpr (Traits::kGeneral) {
      if (params.bias.data != nullptr) {
        bias_ = static_cast<const float*>(params.bias.data) +
                sequence.index * params.bias.strides[0] + head * params.bias.strides[1];
      }
      // Rows behind the last sequence have no score, and no slope.
      if (params.alibi_slopes != nullptr && !sequence.behind_last) {
        slope_ = ldg(params.alibi_slopes + sequence.index * params.alibi_batch_stride +
                     head * params.alibi_head_stride);
      }
    }
  }

  // What the results of apply are still to be multiplied by: one multiplication, fused into the
  // exponent, is all that most scores need.
  __device__ __forceinline__ float factor() const { return only_scale_ ? scale_ * kLog2E : 1.0f; }

  // Replaces products by scores. `capped` gets the tanh of the softcap, if there is one.
  template <bool kTransposed, int kColTiles>
  __device__ __forceinline__ void apply(float (&s)[kColTiles][4], float (&capped)[kColTiles][4],
                                        ScorePlace<kTransposed> place) const {
    if constexpr (Traits::kGeneral) {
      // Each tile is done with before the next begins, which keeps the addresses of few in
      // registers.
      FASTATTN_UNROLL
      for (int n = 0; n < kColTiles; ++n) {
        if (!only_scale_) apply_options(s[n], capped[n], place, n);
        if (params_.window_left >= 0 || params_.window_right >= 0) mask_window(s[n], place, n);
      }
    }
  }

  __device__ __forceinline__ bool has_softcap() const {
    return Traits::kGeneral && params_.softcap > 0;
  }

  // 2^(s2 - lse2). Where the bias is -FLT_MAX no digit of the difference is left: p is at most 1.
  __device__ __forceinline__ float weight(float s, float lse2) const {
    const float exponent = s * factor() - lse2;
    return exp2_fast(only_scale_ ? exponent : fminf(exponent, 0.0f));
  }

  // The keys that `rows` queries from row0 on can see are all in [first_col, end_col).
  __device__ __forceinline__ int first_col(int row0) const {
    if (!Traits::kGeneral || params_.window_left < 0) return 0;
    return clamp(row0 + diagonal() - params_.window_left, seqlen_k_);
  }
  __device__ __forceinline__ int end_col(int row0, int rows) const {
    if (!Traits::kGeneral || params_.window_right < 0) return seqlen_k_;
    return clamp(row0 + rows + diagonal() + params_.window_right, seqlen_k_);
  }
  // The queries that can see `cols` keys from col0 on are all in [first_row, end_row).
  __device__ __forceinline__ int first_row(int col0) const {
    if (!Traits::kGeneral || params_.window_right < 0) return 0;
    return clamp(col0 - diagonal() - params_.window_right, seqlen_q_);
  }
  __device__ __forceinline__ int end_row(int col0, int cols) const {
    if (!Traits::kGeneral || params_.window_left < 0) return seqlen_q_;
    return clamp(col0 + cols - diagonal() + params_.window_left, seqlen_q_);
  }

 private:
  // A window may be as wide as 64 bits; only a bound within the sequence matters.
  __device__ __forceinline__ static int clamp(int64_t x, int end) {
    return x < 0 ? 0 : x > end ? end : static_cast<int>(x);
  }
  __device__ __forceinline__ int64_t diagonal() const { return int64_t{seqlen_k_} - seqlen_q_; }

  template <class Function>
  __device__ __forceinline__ static void for_each(float (&s)[4], const Function& function) {
    FASTATTN_UNROLL
    for (int i = 0; i < 4; ++i) s[i] = function(s[i], i);
  }

  template <class Place>
  __device__ __forceinline__ void apply_options(float (&s)[4], float (&capped)[4], Place place,
                                                int n) const {
    if (params_.softcap > 0) {
      const float softcap = static_cast<float>(params_.softcap);
      const float scale = static_cast<float>(params_.softmax_scale / params_.softcap);
      for_each(s, [&](float x, int i) { return softcap * (capped[i] = tanh(x * scale)); });
    } else {
      for_each(s, [&](float x, int) { return x * scale_; });
    }
    if (params_.bias.data != nullptr) add_bias(s, place, n);
    if (params_.alibi_slopes != nullptr) {
      const int diagonal = seqlen_k_ - seqlen_q_;
      for_each(s, [&](float x, int i) {
        const int distance = place.row(n, i) + diagonal - place.col(n, i);
        return x - slope_ * static_cast<float>(distance < 0 ? -distance : distance);
      });
    }
    for_each(s, [](float x, int) {
      // A finite score stays finite, so that a row of -FLT_MAX is uniform as in plain softmax.
      return x == -kInfinity ? x : fmaxf(x * kLog2E, -kLargest);
    });
  }

  template <class Place>
  __device__ __forceinline__ void add_bias(float (&s)[4], Place place, int n) const {
    for_each(s, [&](float x, int i) {
      const int row = place.row(n, i), col = place.col(n, i);
      if (row >= seqlen_q_ || col >= seqlen_k_) return x;
      return x + ldg(bias_ + row * params_.bias.strides[2] + col * params_.bias.strides[3]);
    });
  }

  template <class Place>
  __device__ __forceinline__ void mask_window(float (&s)[4], Place place, int n) const {
    const int64_t left = params_.window_left, right = params_.window_right;
    const int diagonal = seqlen_k_ - seqlen_q_;
    for_each(s, [&](float x, int i) {
      const int distance = place.col(n, i) - place.row(n, i) - diagonal;
      const bool seen = (left < 0 || distance >= -left) && (right < 0 || distance <= right);
      return seen ? x : -kInfinity;
    });
  }

  const AttentionParams& params_;
  const int seqlen_q_, seqlen_k_;
  const float scale_;
  const bool only_scale_;
  const float* bias_ = nullptr;
  float slope_ = 0.0f;
};

// Gives -inf to the scores of keys that are not live; the first of `live` is the tile's first.
template <int kCols, int kColTiles>
__device__ __forceinline__ void mask_keys(float (&s)[kColTiles][4], const LiveKeys<kCols>& live) {
  if (live.all()) return;
  FASTATTN_UNROLL
  for (int n = 0; n < kColTiles; ++n) {
    FASTATTN_UNROLL
    for (int i = 0; i < 2; ++i) {
      if (!live.test(8 * n + i, quad_col())) s[n][i] = s[n][i + 2] = -kInfinity;
    }
  }
}

}  // namespace fastattn::cuda
