// What the operators on rows of hidden states share: vectors of any element type with a part at
// the end of a row, rows split over threads, sums over rows, the dropout mask of a row.
#pragma once

#include "common/philox.h"
#include "cpu/dropout.h"
#include "cpu/numbers.h"
#include "cpu/parallel.h"

namespace fastattn::cpu::FASTATTN_CPU_ISA {

// Stores kLanes numbers as elements.
template <class Stat, class Element>
inline void store_stats(Element* p, Vec<Stat> v) {
  if constexpr (sizeof(Element) == sizeof(Stat)) {
    store(p, v);
  } else {
    for (int i = 0; i < kLanes<Stat>; ++i) p[i] = from_float<Element>(v[i]);
  }
}
// To nearest, ties to even; NaN stays NaN.
template <>
inline void store_stats<float, BFloat16>(BFloat16* p, Vec<float> v) {
#if defined(__AVX512BF16__)
  const __m256bh rounded = _mm512_cvtneps_pbh(v);
#else
  typedef uint16_t Halves __attribute__((vector_size(kVecBytes / 2)));
  const Vec<uint32_t> bits = bit_cast<Vec<uint32_t>>(v);
  const Vec<uint32_t> nearest = (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16;
  const Vec<uint32_t> nan = (bits >> 16) | 0x40u;
  const Halves rounded =
      __builtin_convertvector((bits & 0x7FFFFFFFu) > 0x7F800000u ? nan : nearest, Halves);
#endif
  std::memcpy(p, &rounded, sizeof(rounded));
}
#if defined(__AVX512F__)
template <>
inline void store_stats<float, Half>(Half* p, Vec<float> v) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                      _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
#elif defined(__AVX2__)
template <>
inline void store_stats<float, Half>(Half* p, Vec<float> v) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                   _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
#endif

// Calls body(col, lanes, slot) for the vectors that cover columns [0, cols). `lanes` says how many
// of a vector's lanes are columns: Int<kLanes> for whole vectors, an int for a part at the end.
// `slot`, Int<0> to Int<kSlots - 1>, names a partial sum: neighbours have different ones, so that
// none of them waits for the last addition to finish.
constexpr int kSlots = 4;
template <class Stat, class Body>
inline void for_each_vec(int64_t cols, const Body& body) {
  constexpr int kStep = kLanes<Stat>;
  constexpr Int<kStep> kWhole{};
  int64_t col = 0;
  for (; col + kSlots * kStep <= cols; col += kSlots * kStep) {
    body(col, kWhole, Int<0>{});
    body(col + kStep, kWhole, Int<1>{});
    body(col + 2 * kStep, kWhole, Int<2>{});
    body(col + 3 * kStep, kWhole, Int<3>{});
  }
  for (; col + kStep <= cols; col += kStep) body(col, kWhole, Int<0>{});
  if (col < cols) body(col, static_cast<int>(cols - col), Int<1>{});
}

// A sum in kSlots parts.
template <class Stat>
struct SlotSum {
  Vec<Stat> parts[kSlots] = {};
  Stat total() const { return reduce_add<Stat>((parts[0] + parts[1]) + (parts[2] + parts[3])); }
};

// The lanes that are columns, 0 in the others.
template <class Stat, class Element, int kCount>
inline Vec<Stat> load_lanes(const Element* p, Int<kCount> /*lanes*/) {
  return load_stats<Stat>(p);
}
template <class Stat, class Element>
inline Vec<Stat> load_lanes(const Element* p, int lanes) {
  Element part[kLanes<Stat>] = {};
  std::memcpy(part, p, static_cast<size_t>(lanes) * sizeof(Element));
  return load_stats<Stat>(part);
}
template <class Stat, class Element, int kCount>
inline void store_lanes(Element* p, Vec<Stat> v, Int<kCount> /*lanes*/) {
  store_stats<Stat>(p, v);
}
template <class Stat, class Element>
inline void store_lanes(Element* p, Vec<Stat> v, int lanes) {
  Element part[kLanes<Stat>];
  store_stats<Stat>(part, v);
  std::memcpy(p, part, static_cast<size_t>(lanes) * sizeof(Element));
}
template <class Stat, int kCount>
inline Vec<Stat> zero_rest(Vec<Stat> v, Int<kCount> /*lanes*/) {
  return v;
}
template <class Stat>
inline Vec<Stat> zero_rest(Vec<Stat> v, int lanes) {
  return keep_lanes<Stat>(v, (1u << lanes) - 1u);
}

// -|v|.
template <class Stat>
inline Vec<Stat> minus_magnitude(Vec<Stat> v) {
  const Vec<Bits<Stat>> sign = bit_cast<Vec<Bits<Stat>>>(splat<Stat>(Stat{-0.0}));
  return bit_cast<Vec<Stat>>(bit_cast<Vec<Bits<Stat>>>(v) | sign);
}

// Which elements of a row of hidden states dropout keeps.
class RowMask {
 public:
  static int64_t bytes(int64_t cols) { return round_up(cols, philox::kHiddenBlock) / 8; }
  explicit RowMask(uint8_t* bits) : bits_(bits) {}

  void draw(uint64_t seed, uint32_t drop_threshold, int64_t row, int64_t cols) {
    constexpr int kCalls = kLanes<uint32_t>;  // side by side
    constexpr int kGroupBytes = philox::kHiddenGroup / 8;
    const Vec<uint32_t> lane = iota<uint32_t>();
    const Vec<uint32_t> row_low = splat(static_cast<uint32_t>(row));
    const Vec<uint32_t> row_high = splat(static_cast<uint32_t>(static_cast<uint64_t>(row) >> 32));
    const int64_t calls = round_up(cols, philox::kHiddenBlock) / 8;
    for (int64_t call = 0; call < calls; call += kCalls) {
      const PhiloxWords words = philox4x32(seed, lane + static_cast<uint32_t>(call), row_low,
                                           row_high, splat(philox::kHiddenMark));
      const int64_t block = call / philox::kCallsPerHiddenBlock;
      const int64_t col = 2 * (call % philox::kCallsPerHiddenBlock);
      uint8_t* first = bits_ + block * (philox::kHiddenBlock / 8) + col / 8;
      for (int w = 0; w < 4; ++w) {
        const uint32_t kept = kept_bits(words.word[w], drop_threshold);
        std::memcpy(first + w * kGroupBytes, &kept, kCalls / 4);  // the low bytes come first
      }
    }
  }

  // The vector that starts at column `col`, 0 where it is dropped.
  template <class Stat>
  Vec<Stat> keep(Vec<Stat> v, int64_t col) const {
    uint32_t bits = bits_[col / 8];
    if constexpr (kLanes<Stat> > 8) bits |= static_cast<uint32_t>(bits_[col / 8 + 1]) << 8;
    return keep_lanes<Stat>(v, bits >> (col % 8));
  }

 private:
  static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "bits are stored from the low byte on");
  uint8_t* bits_;
};

// Rows in chunks, the units of work. Chunks depend on the shape alone, so that sums over rows,
// taken within a chunk and then over the chunks, do not depend on the number of threads.
struct RowChunks {
  static constexpr int64_t kMaxChunks = 128;  // sums of the chunks stay a small part of the data
  static constexpr int64_t kMinElements = 16384;  // a few microseconds: less is not worth a thread
  int64_t rows, size, count;

  RowChunks(int64_t num_rows, int64_t cols) : rows(num_rows) {
    size = max_of((rows + kMaxChunks - 1) / kMaxChunks,
                  (kMinElements + cols - 1) / max_of<int64_t>(cols, 1));
    count = (rows + size - 1) / size;
  }
  int64_t begin(int64_t chunk) const { return chunk * size; }
  int64_t end(int64_t chunk) const { return min_of((chunk + 1) * size, rows); }
};

// kSums sums over rows for each column, taken chunk by chunk.
template <class Stat, int kSums>
class ColumnSums {
 public:
  ColumnSums(int64_t chunks, int64_t cols)
      : chunks_(chunks),
        cols_(cols),
        stride_(round_up(cols, kLanes<Stat>)),
        sums_(new Stat[static_cast<size_t>(chunks * kSums * stride_)]) {}
  ~ColumnSums() { delete[] sums_; }
  ColumnSums(const ColumnSums&) = delete;
  ColumnSums& operator=(const ColumnSums&) = delete;

  // The sum of one chunk: whole vectors that cover the columns.
  Stat* of(int64_t chunk, int sum) { return sums_ + (chunk * kSums + sum) * stride_; }
  // Zeroes them for columns [col0, col0 + cols); col0 is a multiple of a vector.
  void clear(int64_t chunk, int64_t col0, int64_t cols) {
    const size_t bytes = static_cast<size_t>(round_up(cols, kLanes<Stat>)) * sizeof(Stat);
    for (int sum = 0; sum < kSums; ++sum) std::memset(of(chunk, sum) + col0, 0, bytes);
  }

  // Stores the sums over all chunks, each at its pointer unless that is null.
  void store_totals(void* const (&totals)[kSums], int num_threads) {
    constexpr int64_t kPiece = 256;  // columns of a unit of work
    const int64_t pieces = (cols_ + kPiece - 1) / kPiece;
    const int threads = chunks_ * cols_ < RowChunks::kMinElements ? 1 : num_threads;
    parallel_for(pieces * kSums, threads, /*scratch_bytes=*/1, [&](int64_t unit, void*) {
      const int sum = static_cast<int>(unit % kSums);
      const int64_t col0 = unit / kSums * kPiece;
      if (totals[sum] == nullptr) return;
      Stat* total = static_cast<Stat*>(totals[sum]) + col0;
      for_each_vec<Stat>(min_of(kPiece, cols_ - col0), [&](int64_t col, auto lanes, auto /*slot*/) {
        Vec<Stat> v = splat<Stat>(0);
        for (int64_t chunk = 0; chunk < chunks_; ++chunk) v += load(of(chunk, sum) + col0 + col);
        store_lanes<Stat>(total + col, v, lanes);
      });
    });
  }

 private:
  const int64_t chunks_, cols_, stride_;
  Stat* const sums_;
};

// A row of a matrix.
template <class Element>
inline Element* row_of(const MatrixRef& matrix, int64_t row) {
  return static_cast<Element*>(matrix.data) + row * matrix.row_stride;
}

// Calls run(stat, element), two values whose types are those of statistics and of the elements.
template <class Run>
inline void dispatch_stats(ElementType type, const Run& run) {
  dispatch_element(type,
                   [&](auto math, auto element) { run(typename decltype(math)::Stat{}, element); });
}

}  // namespace fastattn::cpu::FASTATTN_CPU_ISA
