// What the Hopper kernels are written against beyond cuda/device.cuh: barriers in shared memory,
// products of a warpgroup, and the fence between what threads write and what these products read.
#pragma once

#include "cuda/device.cuh"
#ifdef FASTATTN_EMULATE
#include "emulator/hopper.h"
#else
#include "hopper/ptx.cuh"
#endif
