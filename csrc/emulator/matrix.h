// The product that all products are made of: 16 x 8 += 16 x 16 @ 16 x 8, of 16-bit numbers.
#pragma once

#include <cstdint>

#include "emulator/instructions.h"

namespace fastattn::emulator {

constexpr int kM = 16, kN = 8, kK = 16;

struct Operands {
  alignas(32) uint16_t a[kM][kK];
  alignas(32) uint16_t b[kN][kK];  // by column
  alignas(32) float c[kM][kN];
};

// A lane's registers of the left factor and of the result, to and from the matrices.
void put_left(Operands& operands, int lane, const uint32_t* a);
void put_result(Operands& operands, int lane, const float* c);
void get_result(const Operands& operands, int lane, float* c);

void multiply(Operands& operands, Element element);

}  // namespace fastattn::emulator
