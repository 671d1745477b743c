// Tiles: small [tokens][channels] arrays of floats or doubles that the kernels compute on, and the copies between them
// and tensors of any strides, dtype and scan order.
#pragma once

#include <stdlib.h>

#include "simd.h"

namespace {

const int kChunk = UMAMBA_CHUNK, kBlock = UMAMBA_BLOCK;

UMAMBA_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
UMAMBA_INLINE int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// ---- Numbers in memory -------------------------------------------------------------------------------------------

struct Bfloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

UMAMBA_INLINE uint32_t bits_of(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  return bits;
}
UMAMBA_INLINE float float_of(uint32_t bits) {
  float x;
  memcpy(&x, &bits, sizeof x);
  return x;
}

// Written without branches, for the compiler's own vectorisation. Stores round to nearest, ties to even.
template <class Real>
UMAMBA_INLINE Real read(Real x) {
  return x;
}
UMAMBA_INLINE float read(Bfloat16 x) { return float_of(uint32_t(x.bits) << 16); }
UMAMBA_INLINE float read(Float16 x) {
  const uint32_t magnitude = uint32_t(x.bits & 0x7fff) << 13;
  const uint32_t special = magnitude >= 0x0f800000 ? 0x7f800000 : 0;  // infinity and NaN
  return float_of(bits_of(float_of(magnitude) * 0x1p112f) | special | uint32_t(x.bits & 0x8000) << 16);
}

template <class Real>
UMAMBA_INLINE void write(Real* to, Real x) {
  *to = x;
}
UMAMBA_INLINE void write(Bfloat16* to, float x) {
  const uint32_t bits = bits_of(x), rounded = bits + 0x7fff + (bits >> 16 & 1);
  to->bits = uint16_t(((bits & 0x7fffffff) > 0x7f800000 ? bits | 0x400000 : rounded) >> 16);
}
UMAMBA_INLINE void write(Float16* to, float x) {
  const uint32_t bits = bits_of(x), magnitude = bits & 0x7fffffff, sign = bits >> 16 & 0x8000;
  const uint32_t normal = (magnitude - 0x38000000 + 0xfff + (magnitude >> 13 & 1)) >> 13;
  const uint32_t subnormal = bits_of(float_of(magnitude) + 0.5f) - 0x3f000000;  // the addition rounds
  const uint32_t finite = magnitude < 0x38800000 ? subnormal : normal;
  const uint32_t special = magnitude > 0x7f800000 ? 0x7e00 : 0x7c00;
  to->bits = uint16_t((magnitude >= 0x477ff000 ? special : finite) | sign);
}

// ---- Addresses ---------------------------------------------------------------------------------------------------

// Where `count` tokens from `first` on, in scan order, lie along the token axis of a tensor.
struct Addresses {
  int64_t at[kChunk];
  int count;
  int step;  // 1 or -1 if the addresses follow each other, else 0
};

void locate(Addresses& a, int64_t length, int64_t slices, bool reverse, int64_t first, int count) {
  const int64_t slice = length / slices;
  a.count = count;
  a.step = slices == 1 || slice == 1 ? (reverse ? -1 : 1) : 0;
  // Token t lies at (t mod slices) slice + t div slices. Counted from the lowest t of the range, as divisions are slow.
  const int64_t lowest = reverse ? length - first - count : first;
  int64_t remainder = lowest % slices, at = remainder * slice + lowest / slices;
  for (int i = 0; i < count; ++i) {
    a.at[reverse ? count - 1 - i : i] = at;
    if (++remainder == slices)
      remainder = 0, at += 1 - (slices - 1) * slice;
    else
      at += slice;
  }
}

// ---- Copies ------------------------------------------------------------------------------------------------------

// Channels far apart and tokens side by side: 4 x 4 numbers are transposed in registers. `tile` is the row of the
// lowest address, and rows of higher ones follow at `row`, which is negative for a scan from the end.
template <class Real>
void pack_transposed(Real* tile, int64_t row, const Real* from, int64_t channel_stride, int channels, int tokens) {
  typedef typename Simd<Real>::Four Four;
  typedef typename Simd<Real>::FourInMemory FourInMemory;
  for (int t = 0; t < tokens; t += 4)
    for (int c = 0; c < channels; c += 4) {
      const Real* p = from + c * channel_stride + t;
      Four x[4];
      for (int i = 0; i < 4; ++i) x[i] = *(const FourInMemory*)(p + i * channel_stride);
      transpose(x[0], x[1], x[2], x[3]);
      for (int i = 0; i < 4; ++i) *(FourInMemory*)(tile + (t + i) * row + c) = x[i];
    }
}

template <class Real>
void unpack_transposed(const Real* tile, int64_t row, Real* to, int64_t channel_stride, int channels, int tokens) {
  typedef typename Simd<Real>::Four Four;
  typedef typename Simd<Real>::FourInMemory FourInMemory;
  for (int c = 0; c < channels; c += 4)
    for (int t = 0; t < tokens; t += 4) {
      Four x[4];
      for (int i = 0; i < 4; ++i) x[i] = *(const FourInMemory*)(tile + (t + i) * row + c);
      transpose(x[0], x[1], x[2], x[3]);
      Real* p = to + c * channel_stride + t;
      for (int i = 0; i < 4; ++i) *(FourInMemory*)(p + i * channel_stride) = x[i];
    }
}

// The part [0, channels) x [0, tokens) of a tile that pack_transposed can copy; none for other dtypes.
template <class Real>
UMAMBA_INLINE bool transposed_pack(Real* tile, int64_t row, const Real* from, const UmambaTensor& x,
                                   const Addresses& a, int channels, int tokens) {
  if (!a.step || x.token_stride != 1 || !channels || !tokens) return false;
  const int64_t lowest = a.step > 0 ? a.at[0] : a.at[tokens - 1];
  Real* first_row = a.step > 0 ? tile : tile + (tokens - 1) * row;
  pack_transposed(first_row, a.step * row, from + lowest, x.channel_stride, channels, tokens);
  return true;
}
template <class Real, class Stored>
UMAMBA_INLINE bool transposed_pack(Real*, int64_t, const Stored*, const UmambaTensor&, const Addresses&, int, int) {
  return false;
}

template <class Real>
UMAMBA_INLINE bool transposed_unpack(const Real* tile, int64_t row, Real* to, const UmambaTensor& x,
                                     const Addresses& a, int channels, int tokens) {
  if (!a.step || x.token_stride != 1 || !channels || !tokens) return false;
  const int64_t lowest = a.step > 0 ? a.at[0] : a.at[tokens - 1];
  const Real* first_row = a.step > 0 ? tile : tile + (tokens - 1) * row;
  unpack_transposed(first_row, a.step * row, to + lowest, x.channel_stride, channels, tokens);
  return true;
}
template <class Real, class Stored>
UMAMBA_INLINE bool transposed_unpack(const Real*, int64_t, Stored*, const UmambaTensor&, const Addresses&, int, int) {
  return false;
}

template <class Real, class Stored>
void pack_stored(Real* tile, int row, const Stored* from, const UmambaTensor& x, const Addresses& a, int channels) {
  if (x.channel_stride == 1) {
    for (int t = 0; t < a.count; ++t) {
      const Stored* p = from + a.at[t] * x.token_stride;
      Real* q = tile + t * row;
      if (channels == kBlock)
        for (int c = 0; c < kBlock; ++c) q[c] = read(p[c]);
      else
        for (int c = 0; c < channels; ++c) q[c] = read(p[c]);
    }
    return;
  }
  int tokens = a.count / 4 * 4, whole = channels / 4 * 4;
  if (!transposed_pack(tile, row, from, x, a, whole, tokens)) tokens = 0;
  for (int c = 0; c < channels; ++c)
    for (int t = c < whole ? tokens : 0; t < a.count; ++t)
      tile[t * row + c] = read(from[c * x.channel_stride + a.at[t] * x.token_stride]);
}

template <class Real, class Stored>
void unpack_stored(const Real* tile, int row, Stored* to, const UmambaTensor& x, const Addresses& a, int channels) {
  if (x.channel_stride == 1) {
    for (int t = 0; t < a.count; ++t) {
      Stored* p = to + a.at[t] * x.token_stride;
      const Real* q = tile + t * row;
      if (channels == kBlock)
        for (int c = 0; c < kBlock; ++c) write(p + c, q[c]);
      else
        for (int c = 0; c < channels; ++c) write(p + c, q[c]);
    }
    return;
  }
  int tokens = a.count / 4 * 4, whole = channels / 4 * 4;
  if (!transposed_unpack(tile, row, to, x, a, whole, tokens)) tokens = 0;
  for (int c = 0; c < channels; ++c)
    for (int t = c < whole ? tokens : 0; t < a.count; ++t)
      write(to + c * x.channel_stride + a.at[t] * x.token_stride, tile[t * row + c]);
}

// Tile [a.count][row] of `channels` channels of a tensor from element `first` on; the rest of a row becomes 0.
void pack(float* tile, int row, const UmambaTensor& x, int64_t first, const Addresses& a, int channels) {
  if (x.dtype == UMAMBA_FLOAT32) pack_stored(tile, row, (const float*)x.data + first, x, a, channels);
  if (x.dtype == UMAMBA_BFLOAT16) pack_stored(tile, row, (const Bfloat16*)x.data + first, x, a, channels);
  if (x.dtype == UMAMBA_FLOAT16) pack_stored(tile, row, (const Float16*)x.data + first, x, a, channels);
  for (int c = channels; c < row; ++c)
    for (int t = 0; t < a.count; ++t) tile[t * row + c] = 0;
}
void pack(double* tile, int row, const UmambaTensor& x, int64_t first, const Addresses& a, int channels) {
  pack_stored(tile, row, (const double*)x.data + first, x, a, channels);
  for (int c = channels; c < row; ++c)
    for (int t = 0; t < a.count; ++t) tile[t * row + c] = 0;
}

void unpack(const float* tile, int row, const UmambaTensor& x, int64_t first, const Addresses& a, int channels) {
  if (x.dtype == UMAMBA_FLOAT32) unpack_stored(tile, row, (float*)x.data + first, x, a, channels);
  if (x.dtype == UMAMBA_BFLOAT16) unpack_stored(tile, row, (Bfloat16*)x.data + first, x, a, channels);
  if (x.dtype == UMAMBA_FLOAT16) unpack_stored(tile, row, (Float16*)x.data + first, x, a, channels);
}
void unpack(const double* tile, int row, const UmambaTensor& x, int64_t first, const Addresses& a, int channels) {
  unpack_stored(tile, row, (double*)x.data + first, x, a, channels);
}

// Fetches what pack or unpack will touch, where channels or tokens are contiguous. Inline, because GCC drops calls of a
// function that does nothing else.
UMAMBA_INLINE void prefetch(const UmambaTensor& x, int64_t first, const Addresses& a, int channels) {
  if (!x.data || !a.count) return;
  const int64_t size = x.dtype == UMAMBA_FLOAT64 ? 8 : x.dtype == UMAMBA_FLOAT32 ? 4 : 2, line = 64;
  const char* const data = (const char*)x.data + first * size;
  if (x.channel_stride == 1) {
    for (int t = 0; t < a.count; ++t) {
      const char* row = data + a.at[t] * x.token_stride * size;
      for (int64_t i = 0; i < channels * size; i += line) __builtin_prefetch(row + i, 0, 2);
    }
  } else if (a.step && x.token_stride == 1) {
    const char* lowest = data + (a.step > 0 ? a.at[0] : a.at[a.count - 1]) * size;
    for (int c = 0; c < channels; ++c)
      for (int64_t i = 0; i < a.count * size; i += line)
        __builtin_prefetch(lowest + c * x.channel_stride * size + i, 0, 2);
  }
}

// A row of `channels` values in contiguous memory; NULL reads as 0.
template <class Real>
UMAMBA_INLINE void pack_row(Real* row, const Real* from, int channels) {
  if (from && channels == kBlock)
    memcpy(row, from, kBlock * sizeof(Real));
  else
    for (int c = 0; c < kBlock; ++c) row[c] = from && c < channels ? from[c] : Real(0);
}

// ---- Scratch -----------------------------------------------------------------------------------------------------

// One malloc cut into arrays that are aligned for vectors.
struct Scratch {
  void* memory = nullptr;
  char* next = nullptr;
  ~Scratch() { free(memory); }

  bool allocate(int64_t bytes, int arrays) {
    memory = malloc(size_t(bytes + 384 * (arrays + 1)));
    next = (char*)memory;
    return memory != nullptr;
  }
  template <class Real>
  Real* take(int64_t count) {
    next = (char*)(((uintptr_t)next + 63) / 64 * 64);
    Real* array = (Real*)next;
    next += count * int64_t(sizeof(Real)) + 320;
    return array;
  }
};

}  // namespace
