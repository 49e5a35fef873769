// Every function of device.cuh that is an instruction, on operands that the caller chooses:
// compiled by nvcc it shows what a GPU does, compiled against the emulator what that believes a GPU
// does.
//
// A lane of a warp gets kInputs words and gives kOutputs words. One block of one warp serves one
// set of operands; an operation's number is its place in kOperations.
#include "cuda/device.cuh"

namespace fastattn::cuda {
namespace {

constexpr int kInputs = 16, kOutputs = 8;

struct Params {
  const uint32_t* input;  // (blocks, 32 lanes, kInputs)
  uint32_t* output;       // (blocks, 32 lanes, kOutputs)
};

struct Lane {
  uint32_t in[kInputs];
  uint32_t out[kOutputs];
  int idx;
};

__device__ __forceinline__ float as_float(uint32_t bits) {
  union {
    uint32_t bits;
    float number;
  } both{bits};
  return both.number;
}
__device__ __forceinline__ uint32_t as_bits(float number) {
  union {
    float number;
    uint32_t bits;
  } both{number};
  return both.bits;
}

// Row i of shared memory is lane i's first four words; word 4 says whose address the lane gives.
template <int kMatrices, bool kTransposed>
struct Ldmatrix {
  __device__ static void run(Lane& lane) {
    sts(smem_base() + 16 * lane.idx, uint4{lane.in[0], lane.in[1], lane.in[2], lane.in[3]});
    sync_warp();
    const uint32_t addr = smem_base() + 16 * (lane.in[4] % 32);
    uint32_t r[kMatrices];
    if constexpr (kMatrices == 4) {
      kTransposed ? ldmatrix_x4_trans(addr, r) : ldmatrix_x4(addr, r);
    } else {
      kTransposed ? ldmatrix_x2_trans(addr, r) : ldmatrix_x2(addr, r);
    }
    FASTATTN_UNROLL
    for (int i = 0; i < kMatrices; ++i) lane.out[i] = r[i];
  }
};

template <class T>
struct Mma {
  __device__ static void run(Lane& lane) {
    const uint32_t a[4] = {lane.in[0], lane.in[1], lane.in[2], lane.in[3]};
    float c[4];
    FASTATTN_UNROLL
    for (int i = 0; i < 4; ++i) c[i] = as_float(lane.in[6 + i]);
    mma_m16n8k16<T>(c, a, lane.in[4], lane.in[5]);
    FASTATTN_UNROLL
    for (int i = 0; i < 4; ++i) lane.out[i] = as_bits(c[i]);
  }
};

template <class T>
struct Numbers {
  __device__ static void run(Lane& lane) {
    lane.out[0] = pack2<T>(as_float(lane.in[0]), as_float(lane.in[1]));
    const float2 pair = unpack2<T>(lane.in[2]);
    lane.out[1] = as_bits(pair.x);
    lane.out[2] = as_bits(pair.y);
    lane.out[3] = as_bits(to_float(from_float<T>(as_float(lane.in[3]))));
  }
};

struct Functions {
  __device__ static void run(Lane& lane) {
    const float x = as_float(lane.in[0]);
    lane.out[0] = as_bits(exp2_fast(x));
    lane.out[1] = as_bits(log2_fast(x));
    lane.out[2] = as_bits(tanh(x));
    lane.out[3] = as_bits(erff(x));
    lane.out[4] = umulhi(lane.in[1], lane.in[2]);
    lane.out[5] = static_cast<uint32_t>(popcount(lane.in[1]));
  }
};

struct Shuffles {
  __device__ static void run(Lane& lane) {
    lane.out[0] = shfl(lane.in[0], static_cast<int>(lane.in[1] % 32));
    lane.out[1] = shfl_xor(lane.in[0], 1);
    lane.out[2] = shfl_xor(lane.in[0], 20);
    lane.out[3] = shfl_down(lane.in[0], 3);
    lane.out[4] = as_bits(shfl_xor(as_float(lane.in[0]), 31));
    lane.out[5] = ballot(lane.in[2] % 2 != 0);
  }
};

// A copy of the lane's own input, or zeros, read by its neighbour.
struct Copies {
  __device__ static void run(Lane& lane, const uint32_t* src) {
    const uint32_t dst = smem_base() + 16 * lane.idx;
    sts(dst, uint4{1, 2, 3, 4});
    cp_async_16(dst, src, lane.in[0] % 2 != 0);
    cp_async_commit();
    cp_async_wait<0>();
    sync_warp();
    const uint4 copy = lds<uint4>(smem_base() + 16 * (lane.idx ^ 1));
    lane.out[0] = copy.x, lane.out[1] = copy.y, lane.out[2] = copy.z, lane.out[3] = copy.w;
  }
};

// Every width of a load and a store.
struct Accesses {
  __device__ static void run(Lane& lane) {
    const uint32_t addr = smem_base() + 32 * lane.idx, other = smem_base() + 32 * (lane.idx ^ 5);
    sts(addr, uint2{lane.in[0], lane.in[1]});
    sts(addr + 8, static_cast<uint16_t>(lane.in[2]));
    sts(addr + 10, static_cast<uint8_t>(lane.in[3]));
    sts(addr + 11, static_cast<uint8_t>(lane.in[4]));
    sts(addr + 12, as_float(lane.in[5]));
    sync_warp();
    const uint4 all = lds<uint4>(other);
    lane.out[0] = all.x, lane.out[1] = all.y, lane.out[2] = all.z, lane.out[3] = all.w;
    lane.out[4] = lds<uint16_t>(other + 10);
    lane.out[5] = lds<uint8_t>(other + 9);
    lane.out[6] = as_bits(lds<float2>(other + 8).y);
  }
};

template <class Operation>
FASTATTN_KERNEL void FASTATTN_LAUNCH_BOUNDS(32, 1) conformance_kernel(const Params params) {
  Lane lane;
  lane.idx = static_cast<int>(thread_idx().x);
  const size_t place = block_idx().x * 32 + lane.idx;
  const uint32_t* in = params.input + place * kInputs;
  for (int i = 0; i < kInputs; ++i) lane.in[i] = ldg(in + i);
  for (int i = 0; i < kOutputs; ++i) lane.out[i] = 0;
  if constexpr (std::is_same_v<Operation, Copies>) {
    Operation::run(lane, in);
  } else {
    Operation::run(lane);
  }
  for (int i = 0; i < kOutputs; ++i) stg(params.output + place * kOutputs + i, lane.out[i]);
}

void (*const kOperations[])(Params) = {
    conformance_kernel<Ldmatrix<4, false>>,
    conformance_kernel<Ldmatrix<4, true>>,
    conformance_kernel<Ldmatrix<2, false>>,
    conformance_kernel<Ldmatrix<2, true>>,
    conformance_kernel<Mma<half_t>>,
    conformance_kernel<Mma<bf16_t>>,
    conformance_kernel<Numbers<half_t>>,
    conformance_kernel<Numbers<bf16_t>>,
    conformance_kernel<Functions>,
    conformance_kernel<Shuffles>,
    conformance_kernel<Copies>,
    conformance_kernel<Accesses>,
};

}  // namespace
}  // namespace fastattn::cuda

#ifdef FASTATTN_EMULATE
#include "emulator/control.h"
#endif

// Pointers are the device's, or the host's in an emulated build. Returns what is wrong, or null.
extern "C" const char* conformance(int operation, const uint32_t* input, uint32_t* output,
                                   uint32_t blocks) {
  using namespace fastattn;
#ifdef FASTATTN_EMULATE
  emulator::GlobalBuffers buffers;
  buffers.add("input", input, blocks * 32 * cuda::kInputs * sizeof(uint32_t), /*writable=*/false);
  buffers.add("output", output, blocks * 32 * cuda::kOutputs * sizeof(uint32_t), /*writable=*/true);
#endif
  return cuda::launch(cuda::kOperations[operation], {blocks}, {32}, 1024, nullptr, {input, output});
}
