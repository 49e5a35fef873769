// What a kernel is written against: special instructions, memory and launches behind one set of
// names. nvcc gets them as PTX; with FASTATTN_EMULATE a C++ compiler gets functions that do the
// same on a CPU and check how they are used. Kernels hold no assembly and no pointer to shared
// memory, which is addressed by 32-bit byte addresses from smem_base().
#pragma once

#ifdef FASTATTN_EMULATE
#include "emulator/device.h"
#else
#include "cuda/ptx.cuh"
#endif
