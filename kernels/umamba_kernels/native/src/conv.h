// The causal convolution. Tiles as for the scan, with the width - 1 tokens before (and, for the gradient, after) them.
#pragma once

#include "tiles.h"

namespace {

template <class Real>
struct Conv {
  typedef Block<Real> V;
  const UmambaConv& s;
  const int width;
  const int64_t blocks, segments;

  explicit Conv(const UmambaConv& conv)
      : s(conv),
        width(int(s.width)),
        blocks(ceil_div(s.channels, kBlock)),
        segments(ceil_div(s.length, s.segment)) {}

  int channels(int64_t block) const { return int(smaller(kBlock, s.channels - block * kBlock)); }
  int64_t in(const UmambaTensor& x, int64_t batch, int64_t block) const {
    return batch * x.batch_stride + block * kBlock * x.channel_stride;
  }
  void load_filter(Real* filter, Real* bias, int64_t block) const {
    for (int k = 0; k < width; ++k)
      pack_row(filter + k * kBlock, (const Real*)s.weight + k * s.channels + block * kBlock, channels(block));
    pack_row(bias, s.bias ? (const Real*)s.bias + block * kBlock : nullptr, channels(block));
  }

  // Chunk of the tokens from `first` on; none after the last token.
  Addresses chunk_addresses(int64_t first, int64_t end) const {
    Addresses a;
    locate(a, s.length, s.slices, s.reverse, first, int(first < end ? smaller(kChunk, end - first) : 0));
    return a;
  }

  // Tokens [first, first + count) of a block, zeros before the first and after the last of the sequence.
  void load(Real* tile, const UmambaTensor& x, int64_t batch, int64_t block, int64_t first, int64_t count) const {
    for (; count > 0 && first < 0; ++first, --count, tile += kBlock) memset(tile, 0, kBlock * sizeof(Real));
    while (count > 0 && first < s.length) {
      Addresses a;
      const int n = int(smaller(smaller(count, kChunk), s.length - first));
      locate(a, s.length, s.slices, s.reverse, first, n);
      pack(tile, kBlock, x, in(x, batch, block), a, channels(block));
      first += n, count -= n, tile += n * kBlock;
    }
    if (count > 0) memset(tile, 0, size_t(count) * kBlock * sizeof(Real));
  }

  template <int count>
  UMAMBA_INLINE void prefetch_block(int64_t batch, int64_t k, const Addresses& a,
                                    const UmambaTensor* const (&tensors)[count]) const {
    for (const UmambaTensor* x : tensors) prefetch(*x, in(*x, batch, k), a, channels(k));
  }

  // What the activation is given at `tokens` tokens; x starts width - 1 tokens before them.
  void convolve(int64_t tokens, const Real* x, const Real* filter, const Real* bias, Real* out) const {
    const V b = V::load(bias);
    for (int64_t t = 0; t < tokens; ++t) {
      V sum = b;
      for (int k = 0; k < width; ++k) sum = sum + V::load(filter + k * kBlock) * V::load(x + (t + k) * kBlock);
      sum.store(out + t * kBlock);
    }
  }

  int forward(int64_t task) const {
    const int64_t batch = task / segments, begin = task % segments * s.segment;
    const int64_t end = smaller(begin + s.segment, s.length), back = width - 1;
    Scratch scratch;
    if (!scratch.allocate(((2 * kChunk + back) + blocks * (width + 1)) * kBlock * sizeof(Real), 4)) return 1;
    Real *x = scratch.take<Real>((kChunk + back) * kBlock), *out = scratch.take<Real>(kChunk * kBlock);
    Real *filters = scratch.take<Real>(blocks * width * kBlock), *biases = scratch.take<Real>(blocks * kBlock);
    for (int64_t k = 0; k < blocks; ++k) load_filter(filters + k * width * kBlock, biases + k * kBlock, k);
    Addresses a, next = chunk_addresses(begin, end);
    for (int64_t first = begin; first < end; first += kChunk) {
      a = next, next = chunk_addresses(first + kChunk, end);
      const int count = a.count;
      for (int64_t k = 0; k < blocks; ++k) {
        prefetch_block(batch, k + 1 < blocks ? k + 1 : 0, k + 1 < blocks ? a : next, {&s.x, &s.out});
        load(x, s.x, batch, k, first - back, count + back);
        convolve(count, x, filters + k * width * kBlock, biases + k * kBlock, out);
        if (s.silu)
          for (int t = 0; t < count * kBlock; t += kBlock) {
            const V pre = V::load(out + t);
            (pre * sigmoid(pre)).store(out + t);
          }
        unpack(out, kBlock, s.out, in(s.out, batch, k), a, channels(k));
      }
    }
    return 0;
  }

  // The gradient of one segment: dx, and its share of dweight and dbias.
  int backward(int64_t task) const {
    const int64_t batch = task / segments, segment = task % segments, begin = segment * s.segment;
    const int64_t end = smaller(begin + s.segment, s.length), back = width - 1;
    Scratch scratch;
    const int64_t most = kChunk + back;  // dout and the activation's input reach width - 1 tokens further than dx
    const int64_t rows = (3 * most + back + kChunk) + blocks * (width + 1) + width + 1;
    if (!scratch.allocate(rows * kBlock * sizeof(Real), 7)) return 1;
    Real *x = scratch.take<Real>((most + back) * kBlock), *dpre = scratch.take<Real>(most * kBlock);
    Real *dx = scratch.take<Real>(kChunk * kBlock), *pre = scratch.take<Real>(most * kBlock);
    Real *filters = scratch.take<Real>(blocks * width * kBlock), *biases = scratch.take<Real>(blocks * kBlock);
    Real* shares = scratch.take<Real>((width + 1) * kBlock);
    for (int64_t k = 0; k < blocks; ++k) load_filter(filters + k * width * kBlock, biases + k * kBlock, k);
    double* sums = s.sums + task * (width + 1) * s.channels;
    memset(sums, 0, size_t((width + 1) * s.channels) * sizeof(double));
    Addresses a, next = chunk_addresses(begin, end);
    for (int64_t first = begin; first < end; first += kChunk) {
      a = next, next = chunk_addresses(first + kChunk, end);
      const int count = a.count;
      for (int64_t k = 0; k < blocks; ++k) {
        prefetch_block(batch, k + 1 < blocks ? k + 1 : 0, k + 1 < blocks ? a : next, {&s.x, &s.dout, &s.dx});
        const Real* filter = filters + k * width * kBlock;
        load(dpre, s.dout, batch, k, first, count + back);
        load(x, s.x, batch, k, first - back, count + 2 * back);
        if (s.silu) {
          convolve(count + back, x, filter, biases + k * kBlock, pre);
          for (int64_t t = 0; t < (count + back) * kBlock; t += kBlock) {
            const V p = V::load(pre + t), sig = sigmoid(p);
            (V::load(dpre + t) * (sig + p * sig * (V::zero() + Real(1) - sig))).store(dpre + t);
          }
        }
        for (int t = 0; t < count; ++t) {
          V sum = V::zero();
          for (int j = 0; j < width; ++j)
            sum = sum + V::load(filter + (width - 1 - j) * kBlock) * V::load(dpre + (t + j) * kBlock);
          sum.store(dx + t * kBlock);
        }
        unpack(dx, kBlock, s.dx, in(s.dx, batch, k), a, channels(k));
        for (int j = 0; j <= width; ++j) {  // the last one is dbias
          V sum = V::zero();
          for (int t = 0; t < count; ++t) {
            const V g = V::load(dpre + t * kBlock);
            sum = sum + (j < width ? g * V::load(x + (t + j) * kBlock) : g);
          }
          sum.store(shares + j * kBlock);
          for (int c = 0; c < channels(k); ++c) sums[j * s.channels + k * kBlock + c] += shares[j * kBlock + c];
        }
      }
    }
    return 0;
  }

  void finish_sums() const {
    for (int64_t j = 0; j <= width; ++j) {
      Real* to = j < width ? (Real*)s.dweight + j * s.channels : (Real*)s.dbias;
      for (int64_t c = 0; to && c < s.channels; ++c) {
        double sum = 0;
        for (int64_t i = 0; i < s.batch * segments; ++i) sum += s.sums[(i * (width + 1) + j) * s.channels + c];
        to[c] = Real(sum);
      }
    }
  }
};

template <class Real>
int run_conv_forward(const UmambaConv& s) {
  return umamba_parallel(s.threads, s.batch * Conv<Real>(s).segments, [](const void* context, int64_t task) {
    return Conv<Real>(*(const UmambaConv*)context).forward(task);
  }, &s);
}

template <class Real>
int run_conv_backward(const UmambaConv& s) {
  const int64_t tasks = s.batch * Conv<Real>(s).segments;
  const int failed = umamba_parallel(s.threads, tasks, [](const void* context, int64_t task) {
    return Conv<Real>(*(const UmambaConv*)context).backward(task);
  }, &s);
  Conv<Real>(s).finish_sums();
  return failed;
}

int conv_forward(const UmambaConv& s) {
  return s.is_double ? run_conv_forward<double>(s) : run_conv_forward<float>(s);
}
int conv_backward(const UmambaConv& s) {
  return s.is_double ? run_conv_backward<double>(s) : run_conv_backward<float>(s);
}

}  // namespace
