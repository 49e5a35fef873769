// out = keep_scale * keep * x for hidden states; its own gradient, with dout in the place of x.
#include "cpu/elementwise.h"

namespace fastattn::cpu::FASTATTN_CPU_ISA {
namespace {

template <class Stat, class Element>
void run(const HiddenDropoutParams& params) {
  const int64_t cols = params.hidden_size;
  const Stat keep_scale = static_cast<Stat>(philox::keep_scale(params.drop_threshold));
  const RowChunks chunks(params.rows, cols);
  parallel_for(chunks.count, params.num_threads, static_cast<size_t>(RowMask::bytes(cols)),
               [&](int64_t chunk, void* block) {
                 RowMask mask(static_cast<uint8_t*>(block));
                 for (int64_t row = chunks.begin(chunk); row < chunks.end(chunk); ++row) {
                   const Element* x = row_of<const Element>(params.x, row);
                   Element* out = row_of<Element>(params.out, row);
                   mask.draw(params.seed, params.drop_threshold, row, cols);
                   for_each_vec<Stat>(cols, [&](int64_t col, auto lanes, auto /*slot*/) {
                     const Vec<Stat> v = load_lanes<Stat>(x + col, lanes) * keep_scale;
                     store_lanes<Stat>(out + col, mask.keep<Stat>(v, col), lanes);
                   });
                 }
               });
}

}  // namespace

void hidden_dropout(const HiddenDropoutParams& params) {
  dispatch_stats(params.dtype,
                 [&](auto stat, auto element) { run<decltype(stat), decltype(element)>(params); });
}

}  // namespace fastattn::cpu::FASTATTN_CPU_ISA
