// Vectors of the instruction set this file is compiled for, through the vector extensions of GCC and Clang.
//
// Several translation units include this with different flags, so nothing here may have external linkage: a function
// shared by the linker would run AVX-512 code on a CPU without it. Hence the unnamed namespace and no C++ library.
#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "interface.h"

#if defined(__AVX512F__)
#define UMAMBA_VECTOR_BYTES 64
#define UMAMBA_X86(name) _mm512_##name##_ps
#elif defined(__AVX2__)
#define UMAMBA_VECTOR_BYTES 32
#define UMAMBA_X86(name) _mm256_##name##_ps
#elif defined(__x86_64__)
#define UMAMBA_VECTOR_BYTES 16
#define UMAMBA_X86(name) _mm_##name##_ps
#else
#define UMAMBA_VECTOR_BYTES 16
#endif

#define UMAMBA_INLINE inline __attribute__((always_inline))

namespace {

template <class Real>
struct Simd;

template <>
struct Simd<float> {
  typedef float Vector __attribute__((vector_size(UMAMBA_VECTOR_BYTES)));
  typedef int32_t Bits __attribute__((vector_size(UMAMBA_VECTOR_BYTES)));
  typedef float Four __attribute__((vector_size(16)));
  typedef float FourInMemory __attribute__((vector_size(16), aligned(4)));

  // 2^rest - 1 for |rest| <= 0.5, relatively accurate around 0 as well.
  static UMAMBA_INLINE Vector excess(Vector rest) {
    Vector p = rest * 0.001330062747f + 0.009669696912f;
    p = p * rest + 0.05550558493f;
    p = p * rest + 0.2402228117f;
    p = p * rest + 0.6931471825f;
    return p * rest;
  }

  // Adding it rounds to an integer n and leaves n + 127, the exponent bits of 2^n, in the lowest bits.
  static constexpr float magic = 12582912.0f + 127.0f;
  static UMAMBA_INLINE Vector power(Vector shifted) { return (Vector)((Bits)shifted << 23); }

  // The larger and the smaller one of a bound and x; x if it is NaN. Compilers do not see the one instruction for it.
#if defined(UMAMBA_X86)
  static UMAMBA_INLINE Vector at_least(float bound, Vector x) { return UMAMBA_X86(max)(bound - Vector{}, x); }
  static UMAMBA_INLINE Vector at_most(float bound, Vector x) { return UMAMBA_X86(min)(bound - Vector{}, x); }
#else
  static UMAMBA_INLINE Vector at_least(float bound, Vector x) {
    const Vector b = bound - Vector{};
    return b > x ? b : x;
  }
  static UMAMBA_INLINE Vector at_most(float bound, Vector x) {
    const Vector b = bound - Vector{};
    return b < x ? b : x;
  }
#endif

  // 2^x = scale (1 + above), to about 1 ulp: 0 below -126.5, infinite above 127.5, NaN for NaN.
  static UMAMBA_INLINE void exp2(Vector x, Vector& scale, Vector& above) {
    x = at_most(128.0f, at_least(-127.0f, x));
    const Vector shifted = x + magic;
    scale = power(shifted);
    above = excess(x - (shifted - magic));
  }

  // e^x for x <= 0, relatively accurate far below 0 as well: ln 2 is split, so that the product with it is exact.
  static UMAMBA_INLINE Vector exp(Vector x) {
    x = at_least(-88.0f, x);
    const Vector shifted = x * 1.442695041f + magic;
    const Vector n = shifted - magic;
    const Vector rest = excess(((x - n * 0.693359375f) + n * 2.12194440e-4f) * 1.442695041f);
    return (rest + 1.0f) * power(shifted);
  }

  // log(1 + e) for 0 <= e <= 1, relatively accurate near 0: 2 atanh(s), s = e / (2 + e).
  static UMAMBA_INLINE Vector log1p(Vector e) {
    const Vector s = e / (e + 2.0f), q = s * s;
    Vector p = q * 0.1401233971f + 0.1399955004f;
    p = p * q + 0.2001085132f;
    p = p * q + 0.3333320618f;
    return 2.0f * (s + s * q * p);
  }
};

template <>
struct Simd<double> {
  typedef double Vector __attribute__((vector_size(UMAMBA_VECTOR_BYTES)));
  typedef double Four __attribute__((vector_size(32)));
  typedef double FourInMemory __attribute__((vector_size(32), aligned(8)));

  template <double function(double)>
  static UMAMBA_INLINE Vector each(Vector x) {
    for (unsigned i = 0; i < sizeof(Vector) / sizeof(double); ++i) x[i] = function(x[i]);
    return x;
  }
  static UMAMBA_INLINE void exp2(Vector x, Vector& scale, Vector& excess) {
    for (unsigned i = 0; i < sizeof(Vector) / sizeof(double); ++i) {
      const bool near = fabs(x[i]) < 0.5;
      scale[i] = near ? 1.0 : ::exp2(x[i]);
      excess[i] = near ? ::expm1(x[i] * 0.6931471805599453) : 0.0;
    }
  }
  static UMAMBA_INLINE Vector exp(Vector x) { return each<::exp>(x); }
  static UMAMBA_INLINE Vector log1p(Vector x) { return each<::log1p>(x); }
};

// The values of one token in the UMAMBA_BLOCK channels of a tile.
template <class Real>
struct Block {
  typedef typename Simd<Real>::Vector Vector;
  enum { lanes = sizeof(Vector) / sizeof(Real), count = UMAMBA_BLOCK / lanes };
  Vector v[count];

  static UMAMBA_INLINE Block load(const Real* aligned) {
    Block b;
    for (int i = 0; i < count; ++i) b.v[i] = ((const Vector*)aligned)[i];
    return b;
  }
  UMAMBA_INLINE void store(Real* aligned) const {
    for (int i = 0; i < count; ++i) ((Vector*)aligned)[i] = v[i];
  }
  static UMAMBA_INLINE Block zero() {
    Block b;
    for (int i = 0; i < count; ++i) b.v[i] = Vector{};
    return b;
  }
  template <class Function>
  static UMAMBA_INLINE Block map(Function function) {
    Block b;
    for (int i = 0; i < count; ++i) b.v[i] = function(i);
    return b;
  }
  UMAMBA_INLINE Vector sum() const {  // of its vectors, lane by lane
    Vector s = v[0];
    for (int i = 1; i < count; ++i) s += v[i];
    return s;
  }
};

#define UMAMBA_OPERATOR(op)                                                        \
  template <class Real>                                                            \
  UMAMBA_INLINE Block<Real> operator op(const Block<Real>& a, const Block<Real>& b) { \
    return Block<Real>::map([&](int i) { return a.v[i] op b.v[i]; });               \
  }                                                                                \
  template <class Real>                                                            \
  UMAMBA_INLINE Block<Real> operator op(const Block<Real>& a, Real b) {             \
    return Block<Real>::map([&](int i) { return a.v[i] op b; });                    \
  }
UMAMBA_OPERATOR(+)
UMAMBA_OPERATOR(-)
UMAMBA_OPERATOR(*)
#undef UMAMBA_OPERATOR

// A factor 2^x = scale (1 + excess). Rounded to one number it would be off by up to 3e-8, the same way in every token
// with this step: over the memory of a slow decay that adds up. Multiplied in two steps, the product is rounded alone.
template <class Real>
struct Decay {
  Block<Real> scale, excess;
  explicit UMAMBA_INLINE Decay(const Block<Real>& exponent) {
    for (int i = 0; i < Block<Real>::count; ++i) Simd<Real>::exp2(exponent.v[i], scale.v[i], excess.v[i]);
  }
  explicit UMAMBA_INLINE Decay(const Real* stored)
      : scale(Block<Real>::load(stored)), excess(Block<Real>::load(stored + UMAMBA_BLOCK)) {}
  UMAMBA_INLINE void store(Real* to) const { scale.store(to), excess.store(to + UMAMBA_BLOCK); }
  UMAMBA_INLINE Block<Real> operator*(const Block<Real>& x) const {
    const Block<Real> scaled = scale * x;
    return scaled + scaled * excess;
  }
};

// log(1 + e^x), x itself above 20.
template <class Real>
UMAMBA_INLINE Block<Real> softplus(const Block<Real>& x) {
  typedef typename Block<Real>::Vector Vector;
  return Block<Real>::map([&](int i) {
    const Vector v = x.v[i], zero = {};
    const Vector soft = (v < zero ? zero : v) + Simd<Real>::log1p(Simd<Real>::exp(v > zero ? -v : v));
    return v > Real(20) - zero ? v : soft;
  });
}

// The derivative of softplus from its value y: 1 - e^-y, relatively accurate for small ones, and 1 above 20.
template <class Real>
UMAMBA_INLINE Block<Real> softplus_slope(const Block<Real>& y) {
  typedef typename Block<Real>::Vector Vector;
  return Block<Real>::map([&](int i) {
    const Vector v = y.v[i], one = Real(1) - Vector{};
    Vector scale, excess;
    Simd<Real>::exp2(v * Real(-1.4426950408889634), scale, excess);
    return v > Real(20) - Vector{} ? one : (one - scale) - scale * excess;
  });
}

template <class Real>
UMAMBA_INLINE Block<Real> sigmoid(const Block<Real>& x) {
  typedef typename Block<Real>::Vector Vector;
  return Block<Real>::map([&](int i) {
    const Vector v = x.v[i], zero = {}, one = Real(1) - zero;
    const Vector e = Simd<Real>::exp(v > zero ? -v : v);
    return (v < zero ? e : one) / (e + one);
  });
}

template <class Four>
UMAMBA_INLINE void transpose(Four& a, Four& b, Four& c, Four& d) {
#if defined(__clang__)
  const Four ac_low = __builtin_shufflevector(a, c, 0, 4, 1, 5), ac_high = __builtin_shufflevector(a, c, 2, 6, 3, 7);
  const Four bd_low = __builtin_shufflevector(b, d, 0, 4, 1, 5), bd_high = __builtin_shufflevector(b, d, 2, 6, 3, 7);
  a = __builtin_shufflevector(ac_low, bd_low, 0, 4, 1, 5), b = __builtin_shufflevector(ac_low, bd_low, 2, 6, 3, 7);
  c = __builtin_shufflevector(ac_high, bd_high, 0, 4, 1, 5), d = __builtin_shufflevector(ac_high, bd_high, 2, 6, 3, 7);
#else
  typedef decltype(a < b) Index;
  const Index low = {0, 4, 1, 5}, high = {2, 6, 3, 7};
  const Four ac_low = __builtin_shuffle(a, c, low), ac_high = __builtin_shuffle(a, c, high);
  const Four bd_low = __builtin_shuffle(b, d, low), bd_high = __builtin_shuffle(b, d, high);
  a = __builtin_shuffle(ac_low, bd_low, low), b = __builtin_shuffle(ac_low, bd_low, high);
  c = __builtin_shuffle(ac_high, bd_high, low), d = __builtin_shuffle(ac_high, bd_high, high);
#endif
}

}  // namespace
