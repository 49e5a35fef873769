// What happens to a score between the matrix product and the softmax, for forward and backward:
//
//   s2 = log2(e) * (softcap(softmax_scale * s) + bias - slope * |row + diagonal - col|)
//   s2 = -inf where the key is padding, past the end, or outside the window
//
// Everything after this is in powers of two: p = 2^(s2 - lse2) with lse2 = log2(e) * lse.
#pragma once

#include <cmath>

#include "common/params.h"
#include "cpu/parallel.h"

namespace fastattn::cpu::FASTATTN_CPU_ISA {

constexpr double kLog2E = 1.4426950408889634074;
constexpr double kLn2 = 0.69314718055994530942;

template <class Stat>
constexpr Stat kInfinity = static_cast<Stat>(__builtin_inf());
template <class Stat>
constexpr Stat kLargest =
    static_cast<Stat>(sizeof(Stat) == 4 ? 3.40282346638528859812e38 : 1.7976931348623157e308);

// Where one sequence of the batch lies.
struct Sequence {
  int64_t index, seqlen_q, seqlen_k;
  int64_t batch, q_row, k_row;  // batch index and first rows in the tensors

  Sequence(const AttentionParams& params, int64_t i) : index(i) {
    if (params.cu_seqlens_q == nullptr) {
      seqlen_q = params.seqlen_q, seqlen_k = params.seqlen_k;
      batch = i, q_row = 0, k_row = 0;
    } else {
      q_row = params.cu_seqlens_q[i], seqlen_q = params.cu_seqlens_q[i + 1] - q_row;
      k_row = params.cu_seqlens_k[i], seqlen_k = params.cu_seqlens_k[i + 1] - k_row;
      batch = 0;
    }
  }

  // The first row of one head of a tensor of queries, or of keys.
  template <class Element>
  Element* q_rows(const TensorRef& ref, int64_t head) const {
    return rows<Element>(ref, head, q_row);
  }
  template <class Element>
  Element* k_rows(const TensorRef& ref, int64_t head) const {
    return rows<Element>(ref, head, k_row);
  }
  template <class Stat>
  Stat* row_stats(const RowStatsRef& ref, int64_t head) const {
    return static_cast<Stat*>(ref.data) + batch * ref.batch_stride + head * ref.head_stride +
           q_row * ref.row_stride;
  }

 private:
  template <class Element>
  Element* rows(const TensorRef& ref, int64_t head, int64_t row) const {
    return static_cast<Element*>(ref.data) + batch * ref.batch_stride + head * ref.head_stride +
           row * ref.row_stride;
  }
};

// The keys of a sequence that are not padding: a range, and the holes in it.
template <class Stat>
struct Keys {
  int64_t begin = 0, end = 0;
  const Stat* hole = nullptr;  // -inf for a padding key, else 0, by column; null if there is none

  // `holes` has room for the columns, rounded up to whole vectors.
  static Keys find(const AttentionParams& params, const Sequence& sequence, Stat* holes) {
    Keys keys;
    keys.end = sequence.seqlen_k;
    if (params.key_padding_mask == nullptr) return keys;
    const uint8_t* mask = params.key_padding_mask + sequence.batch * params.mask_batch_stride;
    const auto attend = [&](int64_t col) { return mask[col * params.mask_col_stride] != 0; };
    while (keys.end > 0 && !attend(keys.end - 1)) --keys.end;
    while (keys.begin < keys.end && !attend(keys.begin)) ++keys.begin;
    for (int64_t col = 0; col < round_up(sequence.seqlen_k, kLanes<Stat>); ++col) {
      const bool inside = col >= keys.begin && col < keys.end;
      const bool padding = inside && !attend(col);
      if (padding) keys.hole = holes;
      holes[col] = padding ? -kInfinity<Stat> : 0;
    }
    return keys;
  }

  bool is_live(int64_t col) const {
    return col >= begin && col < end && (hole == nullptr || hole[col] == 0);
  }
};

// The rule above for one head of one sequence.
template <class Stat>
class ScoreRule {
 public:
  ScoreRule(const AttentionParams& params, const Sequence& sequence, int64_t head,
            const Keys<Stat>& keys)
      : keys_(keys),
        scale_(static_cast<Stat>(params.softmax_scale)),
        softcap_(static_cast<Stat>(params.softcap)),
        diagonal_(sequence.seqlen_k - sequence.seqlen_q),
        left_(params.window_left),
        right_(params.window_right) {
    if (params.bias.data != nullptr) {
      const BiasRef& bias = params.bias;
      bias_ = static_cast<const Stat*>(bias.data) + sequence.index * bias.strides[0] +
              head * bias.strides[1];
      bias_row_stride_ = bias.strides[2], bias_col_stride_ = bias.strides[3];
    }
    if (params.alibi_slopes != nullptr) {
      has_alibi_ = true;
      slope_ = params.alibi_slopes[sequence.index * params.alibi_batch_stride +
                                   head * params.alibi_head_stride];
    }
  }

  // The columns that rows [row0, row0 + rows) can see are all in [first_col, end_col).
  int64_t first_col(int64_t row0) const {
    return left_ < 0 ? keys_.begin : max_of(keys_.begin, row0 + diagonal_ - left_);
  }
  int64_t end_col(int64_t row0, int rows) const {
    return right_ < 0 ? keys_.end : min_of(keys_.end, row0 + rows + diagonal_ + right_);
  }
  bool sees(int64_t row0, int rows, int64_t col0, int cols) const {
    return max_of(first_col(row0), col0) < min_of(end_col(row0, rows), col0 + cols);
  }

  // Whether a tile of whole vectors is s2 = factor() * s and nothing else, with a factor above 0.
  bool is_plain(int64_t row0, int rows, int64_t col0, int cols) const {
    if (!(scale_ > 0) || softcap_ > 0 || bias_ != nullptr || has_alibi_) return false;
    if (keys_.hole != nullptr) return false;
    return first_col(row0 + rows - 1) <= col0 && col0 + cols <= end_col(row0, 1);
  }
  Stat factor() const { return scale_ * static_cast<Stat>(kLog2E); }

  bool has_softcap() const { return softcap_ > 0; }

  // Replaces the products s of one row and `cols` columns, whole vectors, by s2. With a softcap
  // its derivative goes to `slope`, unless that is null.
  void apply(Stat* s, int64_t row, int64_t col0, int cols, Stat* slope) const {
    const int64_t lo = first_col(row) - col0, hi = end_col(row, 1) - col0;
    using I = Bits<Stat>;
    const Vec<I> lo_lane = splat(clamp_to<I>(lo)), hi_lane = splat(clamp_to<I>(hi));
    if (softcap_ > 0) apply_softcap(s, cols, slope);
    const Stat scale = softcap_ > 0 ? 1 : scale_;
    for (int j = 0; j < cols; j += kLanes<Stat>) {
      Vec<Stat> x = load(s + j) * scale;
      if (bias_ != nullptr) x += load_bias(row, col0 + j);
      if (has_alibi_) {
        const Vec<Stat> distance = static_cast<Stat>(row + diagonal_ - col0 - j) - iota<Stat>();
        x -= slope_ * max<Stat>(distance, -distance);
      }
      // A finite score stays finite, so that a row of -FLT_MAX is uniform as in plain softmax.
      const Vec<Stat> s2 = max<Stat>(splat(-kLargest<Stat>), x * static_cast<Stat>(kLog2E));
      x = x == -kInfinity<Stat> ? x : s2;
      if (keys_.hole != nullptr && col0 + j < round_up(keys_.end, kLanes<Stat>)) {
        x += load(keys_.hole + col0 + j);
      }
      const Vec<I> lane = iota<I>() + static_cast<I>(j);
      x = lane >= lo_lane ? x : splat(-kInfinity<Stat>);
      x = lane < hi_lane ? x : splat(-kInfinity<Stat>);
      store(s + j, x);
    }
  }

 private:
  template <class I>
  static I clamp_to(int64_t x) {  // tiles are small: beyond them only the sign matters
    return static_cast<I>(max_of<int64_t>(min_of<int64_t>(x, 1 << 30), -(1 << 30)));
  }

  void apply_softcap(Stat* s, int cols, Stat* slope) const {
    for (int j = 0; j < cols; ++j) {
      const Stat t = std::tanh(s[j] * scale_ / softcap_);
      s[j] = softcap_ * t;
      if (slope != nullptr) slope[j] = 1 - t * t;
    }
  }

  Vec<Stat> load_bias(int64_t row, int64_t col) const {
    const Stat* p = bias_ + row * bias_row_stride_ + col * bias_col_stride_;
    if (bias_col_stride_ == 0) return splat(*p);
    if (bias_col_stride_ == 1 && col + kLanes<Stat> <= keys_.end) return load(p);
    Vec<Stat> x = splat<Stat>(0);
    for (int i = 0; i < kLanes<Stat> && col + i < keys_.end; ++i) x[i] = p[i * bias_col_stride_];
    return x;
  }

  const Keys<Stat> keys_;
  const Stat scale_, softcap_;
  const int64_t diagonal_, left_, right_;
  const Stat* bias_ = nullptr;
  int64_t bias_row_stride_ = 0, bias_col_stride_ = 0;
  bool has_alibi_ = false;
  Stat slope_ = 0;
};

}  // namespace fastattn::cpu::FASTATTN_CPU_ISA
