// Products of a warpgroup. Each of its warps computes its own 16 rows; they read shared memory as
// late as they may, when they are waited for.
// PTX ISA 8.0, "Asynchronous Warpgroup Level Matrix Multiply-Accumulate Instructions".
#include <cstring>
#include <limits>

#include "emulator/block.h"
#include "emulator/matrix.h"
#include "emulator/report.h"

namespace fastattn::emulator {
namespace {

constexpr uint32_t kChunkBytes = 16, kChunkNumbers = 8;

// A matrix in shared memory, as a descriptor names it: rows of 8 times 16 bits or more that are
// contiguous in `major`, and counted in `minor`.
struct Layout {
  uint32_t start, leading, stride;
  uint32_t row_bytes;  // contiguous bytes, which are permuted within 8 rows
};

Layout decode(uint64_t descriptor, Site site) {
  const auto field = [&](int shift) {
    return static_cast<uint32_t>(descriptor >> shift & 0x3fff) * 16;
  };
  static constexpr uint32_t kRowBytes[] = {0, 128, 64, 32};
  const Layout layout{field(0), field(16), field(32), kRowBytes[descriptor >> 62]};
  if (layout.row_bytes == 0 || (descriptor >> 49 & 7) != 0) {
    report(site, "wgmma: a descriptor must name a swizzle, and tiles that begin where it does");
  }
  return layout;
}

// The address of the 16 bytes from number `major` of row `minor` on: the rows are what is not
// contiguous, of k for a transposed factor.
uint32_t address(const Layout& layout, uint32_t minor, uint32_t major) {
  const uint32_t width = layout.row_bytes / 2;
  const uint32_t linear = layout.start + minor / 8 * layout.stride + minor % 8 * layout.row_bytes +
                          major / width * layout.leading + major % width * 2;
  // Bits 4 and up are changed by bits 7 and up, as many as the swizzle is wide.
  return linear ^ ((linear >> 7 & (layout.row_bytes / kChunkBytes - 1)) << 4);
}

struct Reader {
  Block& block;
  const IssuedProduct& issued;
  int warp;

  void chunk(uint32_t addr, uint16_t* numbers) const {
    const uint32_t offset = block.shared.offset_of(addr, kChunkBytes, "wgmma", issued.site);
    const Actor actor{warp, Actor::kAllLanes, &block.warps[warp].clock};
    block.shared.read_by_product(offset, issued.clock, actor, issued.site);
    std::memcpy(numbers, block.shared.at(offset), kChunkBytes);
  }

  // rows[i] gets the 16 numbers, along the summed dimension, of row or column first + i.
  template <int kRows>
  void factor(uint64_t descriptor, bool transposed, int first, uint16_t (&rows)[kRows][kK]) const {
    const Layout layout = decode(descriptor, issued.site);
    if (!transposed) {
      for (int i = 0; i < kRows; ++i) {
        for (uint32_t k = 0; k < kK; k += kChunkNumbers) {
          chunk(address(layout, first + i, k), &rows[i][k]);
        }
      }
      return;
    }
    for (int k = 0; k < kK; ++k) {
      for (int i = 0; i < kRows; i += kChunkNumbers) {
        uint16_t numbers[kChunkNumbers];
        chunk(address(layout, k, first + i), numbers);
        for (uint32_t j = 0; j < kChunkNumbers; ++j) rows[i + j][k] = numbers[j];
      }
    }
  }
};

// Computes one product of a warp into its accumulators.
void finish(Block& block, int warp, const IssuedProduct& issued, Accumulators& accumulators) {
  const Product& product = issued.product;
  const Reader reader{block, issued, warp};
  Operands operands;
  if (product.in_registers) {
    for (int lane = 0; lane < kWarpSize; ++lane) put_left(operands, lane, issued.a[lane].data());
  } else {
    const int first = warp % kGroupWarps * kM;
    reader.factor(product.a_descriptor, product.a_transposed, first, operands.a);
  }
  for (int n = 0; n < product.col_tiles; ++n) {
    reader.factor(product.b_descriptor, product.b_transposed, n * kN, operands.b);
    std::array<float, 4>* const values = &accumulators.values[n * kWarpSize];
    for (int lane = 0; lane < kWarpSize; ++lane) {
      if (!product.accumulate) values[lane].fill(0.0f);
      put_result(operands, lane, values[lane].data());
    }
    multiply(operands, product.element);
    for (int lane = 0; lane < kWarpSize; ++lane) get_result(operands, lane, values[lane].data());
  }
}

// Takes the numbers out of the lanes' registers, which hold NaN until the products have ended.
Accumulators take(const Exchange& exchange, int col_tiles) {
  Accumulators taken;
  taken.values.resize(size_t{kWarpSize} * col_tiles);
  for (int lane = 0; lane < kWarpSize; ++lane) {
    float* const c = taken.where[lane] = reinterpret_cast<float*>(exchange.lanes[lane].value);
    for (int n = 0; n < col_tiles; ++n) {
      std::memcpy(taken.values[n * kWarpSize + lane].data(), c + 4 * n, 4 * sizeof(float));
    }
    std::fill(c, c + 4 * col_tiles, std::numeric_limits<float>::quiet_NaN());
  }
  return taken;
}

void give_back(const Accumulators& accumulators) {
  const size_t col_tiles = accumulators.values.size() / kWarpSize;
  for (int lane = 0; lane < kWarpSize; ++lane) {
    for (size_t n = 0; n < col_tiles; ++n) {
      std::memcpy(accumulators.where[lane] + 4 * n,
                  accumulators.values[n * kWarpSize + lane].data(), 4 * sizeof(float));
    }
  }
}

void check_group(Block& block, const Product& product, Site site) {
  Warp& warp = block.warp();
  auto& all = block.group_products[block.current->warp / kGroupWarps];
  const std::array<uint64_t, 2> own{product.a_descriptor, product.b_descriptor};
  const size_t index = warp.num_products++;
  if (index == all.size()) all.push_back(own);
  if (all[index] != own) {
    report(site, "divergence: the warps of a warpgroup issue products of different factors");
  }
}

void issue(Block& block, Exchange& exchange, const Product& product, Site site) {
  constexpr int kHopper = 90;
  Warp& warp = block.warp();
  if (block.launch->options.compute_capability != kHopper) {
    report(site, "wgmma: only compute capability 9.0 has products of warpgroups");
  }
  if (!warp.fenced) {
    report(site, "wgmma: there must be a wgmma_fence before the first product of a group");
  }
  check_group(block, product, site);
  IssuedProduct issued{product, {}, nullptr, warp.clock, site};
  for (int lane = 0; lane < kWarpSize; ++lane) {
    std::memcpy(issued.a[lane].data(), exchange.lanes[lane].a, sizeof issued.a[lane]);
  }
  issued.key = reinterpret_cast<float*>(exchange.lanes[0].value);
  auto found = warp.accumulators.find(issued.key);
  if (found == warp.accumulators.end()) {
    found = warp.accumulators.emplace(issued.key, take(exchange, product.col_tiles)).first;
  }
  ++found->second.under_way;
  warp.products.push_back(issued);
  ++block.counters.wgmma;
  block.counters.mma += product.col_tiles;
}

}  // namespace

void wgmma(float* c, const uint32_t* a, const Product& product, Site site) {
  in_whole_warp(
      Operation::kWgmma, 0, site,
      [&](Exchange::Lane& lane) {
        lane.value = reinterpret_cast<uint64_t>(c);
        if (product.in_registers) std::memcpy(lane.a, a, sizeof lane.a);
      },
      [&](Exchange& exchange) {
        issue(*current_block, exchange, product, site);
        return true;
      });
}

void wgmma_fence(Site site) {
  in_whole_warp(
      Operation::kWgmmaFence, 0, site, [](Exchange::Lane&) {},
      [](Exchange&) {
        current_block->warp().fenced = true;
        return true;
      });
}

void wgmma_commit(Site site) {
  in_whole_warp(
      Operation::kWgmmaCommit, 0, site, [](Exchange::Lane&) {},
      [](Exchange&) {
        Warp& warp = current_block->warp();
        warp.product_ends.push_back(warp.products.size());
        warp.fenced = false;
        return true;
      });
}

void wgmma_wait(int pending, Site site) {
  in_whole_warp(
      Operation::kWgmmaWait, pending, site, [](Exchange::Lane&) {},
      [&](Exchange&) {
        Block& block = *current_block;
        Warp& warp = block.warp();
        if (warp.product_ends.size() <= static_cast<size_t>(pending)) return true;
        const size_t groups = warp.product_ends.size() - pending;
        const size_t count = warp.product_ends[groups - 1];
        for (size_t i = 0; i < count; ++i) {
          const auto accumulators = warp.accumulators.find(warp.products[i].key);
          finish(block, block.current->warp, warp.products[i], accumulators->second);
          if (--accumulators->second.under_way > 0) continue;
          give_back(accumulators->second);
          warp.accumulators.erase(accumulators);
        }
        warp.products.erase(warp.products.begin(), warp.products.begin() + count);
        warp.product_ends.erase(warp.product_ends.begin(), warp.product_ends.begin() + groups);
        for (size_t& end : warp.product_ends) end -= count;
        return true;
      });
}

}  // namespace fastattn::emulator
