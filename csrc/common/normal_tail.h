// The left tail of the normal distribution, as the exact GELU needs it. With t = |h|,
//
//   cdf(-t) = exp(-t^2/2) * P(u) / (t + k),   u = (t - k) / (t + k) in [-1, 1)
//
// where P is a polynomial fitted to (t + k) * exp(t^2/2) * cdf(-t), which is smooth and tends to
// 1/sqrt(2 pi). No difference of nearly equal numbers is taken, so the far left side, where the
// formula with erf loses every digit, stays accurate.
#pragma once

namespace fastattn {

constexpr double kHalfLog2E = 0.72134752044448170368;
constexpr double kDensityAt0 = 0.39894228040143267794;  // 1 / sqrt(2 pi)

// P from the highest power on, k, and where exp(-t^2/2) has become 0. Relative errors by Remez
// exchange, as far as it is not 0 (|t| < 13.3 and 38.7): 5.6e-9 and 1.3e-17.
template <class Stat>
struct TailFit;
template <>
struct TailFit<float> {
  static constexpr float kCentre = 3.5f, kEnd = -15.0f;
  static constexpr float kCoefficients[] = {
      1.1565269e-4f, 4.3120232e-4f,  -4.9385101e-4f, -3.1812027e-3f, 6.4912355e-3f,
      1.7407581e-2f, -1.1605267e-1f, 3.1542496e-1f,  -5.6556176e-1f, 7.4441608e-1f};
};
template <>
struct TailFit<double> {
  static constexpr double kCentre = 5.0, kEnd = -40.0;
  static constexpr double kCoefficients[] = {
      2.022585093067622939e-9,   7.2022219117769624787e-9,  -1.0223026276806315595e-8,
      -6.5376870251367826542e-8, 4.3606913263394353138e-8,  4.3275481798792552897e-7,
      -3.3772129896115497226e-7, -2.7691008031498765397e-6, 3.981472196122095752e-6,
      1.6681163367362096446e-5,  -4.9763001805574338687e-5, -5.9375716011665464206e-5,
      5.4489910374483534415e-4,  -7.9786940072903203052e-4, -2.9933767753920246657e-3,
      2.0795066800171892392e-2,  -6.911863870597497829e-2,  1.6502036617036502232e-1,
      -3.1353315667131495913e-1, 4.9530561596997692982e-1,  -6.6538250289005660757e-1,
      7.691930497500629564e-1};
};

}  // namespace fastattn
