// The selective scan. Lanes run over channels: a tile holds UMAMBA_CHUNK tokens of UMAMBA_BLOCK channels, and one pass
// over its tokens advances all states of these channels. The mathematics and the names are those of kernels/README.md.
//
// A task is a range of channel blocks of one batch entry and group. It walks along the tokens chunk by chunk, and for
// each chunk over its blocks, so that B and C are packed once for all of them. How the blocks are cut into tasks
// depends on the number of threads, what is computed does not: the sums over channels (dB, dC) run over fixed
// partitions, whose shares are added up in a second step.
#pragma once

#include "tiles.h"

namespace {

// ---- Kernels on tiles ----------------------------------------------------------------------------------------------

// delta becomes the step.
template <class Real>
void make_steps(int tokens, bool soft, const Real* bias, Real* delta) {
  typedef Block<Real> V;
  const V b = V::load(bias);
  for (int t = 0; t < tokens * kBlock; t += kBlock) {
    const V x = V::load(delta + t) + b;
    (soft ? softplus(x) : x).store(delta + t);
  }
}

template <class Real>
void multiply(int tokens, const Real* a, const Real* b, Real* product) {
  typedef Block<Real> V;
  for (int t = 0; t < tokens * kBlock; t += kBlock) (V::load(a + t) * V::load(b + t)).store(product + t);
}

// The recurrence from `state` on: y = C · h. `drive` is step u, `A` holds A log2(e).
template <class Real>
void sweep(int tokens, int states, const Real* step, const Real* drive, const Real* A, const Real* B, const Real* C,
           Real* state, Real* y) {
  typedef Block<Real> V;
  for (int t = 0; t < tokens; ++t, B += states, C += states) {
    const V s = V::load(step + t * kBlock), d = V::load(drive + t * kBlock);
    V sum = V::zero();
    for (int n = 0; n < states; ++n) {
      const V h = Decay<Real>(s * V::load(A + n * kBlock)) * V::load(state + n * kBlock) + d * B[n];
      h.store(state + n * kBlock);
      sum = sum + h * C[n];
    }
    sum.store(y + t * kBlock);
  }
}

// The same for the gradient. Keeps exp(step A) and all states, history[0] being the given one, and the summands of dC,
// of which the vectors of a block are added up already. y only if with_y.
template <bool with_y, class Real>
void sweep_and_keep(int tokens, int states, const Real* step, const Real* drive, const Real* A, const Real* B,
                    const Real* C, const Real* dy, Real* decay, Real* history, Real* dC, Real* y) {
  typedef Block<Real> V;
  typedef typename V::Vector Vector;
  for (int t = 0; t < tokens; ++t, B += states, C += states) {
    const V s = V::load(step + t * kBlock), d = V::load(drive + t * kBlock), w = V::load(dy + t * kBlock);
    V sum = V::zero();
    for (int n = 0; n < states; ++n) {
      const Decay<Real> a(s * V::load(A + n * kBlock));
      const V h = a * V::load(history) + d * B[n];
      a.store(decay);
      h.store(history + states * kBlock);
      *(Vector*)dC = (w * h).sum();
      if (with_y) sum = sum + h * C[n];
      decay += 2 * kBlock, history += kBlock, dC += V::lanes;
    }
    if (with_y) sum.store(y + t * kBlock);
  }
}

// From the last token to the first. `adjoint` is exp(step A) g of the token after the last one, and in the end of the
// first one. Adds to dA; leaves the summands of dB like those of dC above, drive's gradient and that of the exponents,
// sum_n g e A log2(e).
template <class Real>
void sweep_back(int tokens, int states, const Real* step, const Real* drive, const Real* A, const Real* B,
                const Real* C, const Real* dy, const Real* decay, const Real* history, Real* adjoint, Real* dA,
                Real* dB, Real* ddrive, Real* dexponent) {
  typedef Block<Real> V;
  typedef typename V::Vector Vector;
  for (int t = tokens - 1; t >= 0; --t) {
    const V s = V::load(step + t * kBlock), d = V::load(drive + t * kBlock), w = V::load(dy + t * kBlock);
    V to_drive = V::zero(), to_exponent = V::zero();
    for (int n = 0; n < states; ++n) {
      const int64_t i = int64_t(t) * states + n;
      const V g = V::load(adjoint + n * kBlock) + w * C[i];
      const V passed = Decay<Real>(decay + i * 2 * kBlock) * g;
      const V to_decay = passed * V::load(history + i * kBlock);
      passed.store(adjoint + n * kBlock);
      to_drive = to_drive + g * B[i];
      to_exponent = to_exponent + to_decay * V::load(A + n * kBlock);
      (V::load(dA + n * kBlock) + to_decay * s).store(dA + n * kBlock);
      *(Vector*)(dB + i * V::lanes) = (g * d).sum();
    }
    to_drive.store(ddrive + t * kBlock);
    to_exponent.store(dexponent + t * kBlock);
  }
}

// Sums of `count` vectors over their lanes, written to or added to `sums`.
template <class Real>
void sum_lanes(int64_t count, const Real* vectors, Real* sums, bool add) {
  typedef typename Simd<Real>::Four Four;
  typedef typename Simd<Real>::FourInMemory FourInMemory;
  const int lanes = Block<Real>::lanes;
  int64_t i = 0;
  if (lanes >= 4)
    for (; i + 4 <= count; i += 4) {
      Four x[4];
      for (int k = 0; k < 4; ++k) {
        x[k] = *(const FourInMemory*)(vectors + (i + k) * lanes);
        for (int l = 4; l < lanes; l += 4) x[k] += *(const FourInMemory*)(vectors + (i + k) * lanes + l);
      }
      transpose(x[0], x[1], x[2], x[3]);
      const Four sum = (x[0] + x[1]) + (x[2] + x[3]);
      if (add)
        *(FourInMemory*)(sums + i) += sum;
      else
        *(FourInMemory*)(sums + i) = sum;
    }
  for (; i < count; ++i) {
    Real sum = 0;
    for (int l = 0; l < lanes; ++l) sum += vectors[i * lanes + l];
    sums[i] = add ? sums[i] + sum : sum;
  }
}

// ---- Walks over the tokens -----------------------------------------------------------------------------------------

const double kLog2e = 1.4426950408889634, kLn2 = 0.6931471805599453;

// How the blocks of each group are shared out, in units of a partition.
struct Shares {
  int64_t blocks, partition, partitions, per_group;  // blocks of a group, of a partition; partitions, tasks of a group
};

// As many tasks as keep the threads evenly busy, and no more, since every task packs B and C again. (Smaller tasks were
// measured: no faster where something else runs on a core, 4 to 10 % slower where not.)
UMAMBA_INLINE Shares share(const UmambaScan& s) {
  Shares f;
  f.blocks = ceil_div(s.channels, kBlock);
  f.partition = ceil_div(f.blocks, UMAMBA_PARTITIONS);
  f.partitions = ceil_div(f.blocks, f.partition);
  int64_t least = INT64_MAX;
  for (int64_t n = 1; n <= f.partitions; ++n) {
    const int64_t time = ceil_div(s.batch * s.groups * n, s.threads) * ceil_div(f.partitions, n);
    if (time < least) least = time, f.per_group = n;
  }
  return f;
}

// What is the same for all chunks of a task.
struct Range {
  int64_t batch, group, first_partition, last_partition, first_block, last_block;
  Range(const UmambaScan& s, const Shares& f, int64_t task) {
    const int64_t part = task % f.per_group;
    group = task / f.per_group % s.groups;
    batch = task / f.per_group / s.groups;
    first_partition = f.partitions * part / f.per_group;
    last_partition = f.partitions * (part + 1) / f.per_group;
    first_block = first_partition * f.partition;
    last_block = smaller(last_partition * f.partition, f.blocks);
  }
};

// One block: its place among the channels and its element in a tensor.
struct Place {
  int64_t batch, channel;  // channel: of all groups
  int width;
  Place(const UmambaScan& s, const Range& r, int64_t block) {
    batch = r.batch;
    channel = r.group * s.channels + block * kBlock;
    width = int(smaller(kBlock, s.channels - block * kBlock));
  }
  UMAMBA_INLINE int64_t in(const UmambaTensor& x) const { return batch * x.batch_stride + channel * x.channel_stride; }
};

template <class Real>
struct Scan {
  const UmambaScan& s;
  const int states;
  const int64_t d, chunks;

  explicit Scan(const UmambaScan& scan)
      : s(scan), states(int(s.states)), d(s.groups * s.channels), chunks(ceil_div(s.length, kChunk)) {}

  const Real* parameter(const void* x, const Place& p) const { return x ? (const Real*)x + p.channel : nullptr; }
  Real* chunk_state(const Place& p, int64_t chunk) const {
    return (Real*)s.chunk_states + (p.batch * chunks + chunk) * states * d + p.channel;
  }
  void load_A(Real* A, const Place& p) const {
    for (int n = 0; n < states; ++n) {
      pack_row(A + n * kBlock, (const Real*)s.A + n * d + p.channel, p.width);
      for (int c = 0; c < kBlock; ++c) A[n * kBlock + c] *= Real(kLog2e);
    }
  }
  // None before the first chunk and after the last one.
  Addresses chunk_addresses(int64_t chunk) const {
    Addresses a;
    const int64_t first = chunk * kChunk, count = smaller(kChunk, s.length - first);
    locate(a, s.length, s.slices, s.reverse, first, chunk < 0 || count < 0 ? 0 : int(count));
    return a;
  }
  // What comes next is fetched while the present block is computed; no hardware prefetcher sees these strides coming.
  template <int count>
  UMAMBA_INLINE void prefetch_block(const Range& r, int64_t k, const Addresses& a,
                                    const UmambaTensor* const (&tensors)[count]) const {
    const Place p(s, r, r.first_block + k);
    for (const UmambaTensor* x : tensors) prefetch(*x, p.in(*x), a, p.width);
  }
  int64_t group_in(const UmambaTensor& x, const Range& r) const {
    return r.batch * x.batch_stride + r.group * x.group_stride;
  }

  int forward(int64_t task) const {
    const Range r(s, share(s), task);
    const int64_t blocks = r.last_block - r.first_block;
    const int64_t tile = kChunk * kBlock, per_block = int64_t(states) * kBlock;
    Scratch scratch;
    if (!scratch.allocate((4 * tile + 2 * kBlock + 2 * kChunk * states + 2 * blocks * per_block) * sizeof(Real), 10))
      return 1;
    Real *u = scratch.take<Real>(tile), *step = scratch.take<Real>(tile), *drive = scratch.take<Real>(tile);
    Real *y = scratch.take<Real>(tile), *bias = scratch.take<Real>(kBlock), *D = scratch.take<Real>(kBlock);
    Real *B = scratch.take<Real>(kChunk * states), *C = scratch.take<Real>(kChunk * states);
    Real *all_A = scratch.take<Real>(blocks * per_block), *all_h = scratch.take<Real>(blocks * per_block);
    memset(all_h, 0, size_t(blocks * per_block) * sizeof(Real));
    for (int64_t k = 0; k < blocks; ++k) load_A(all_A + k * per_block, Place(s, r, r.first_block + k));

    Addresses a, next = chunk_addresses(0);
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
      a = next, next = chunk_addresses(chunk + 1);
      pack(B, states, s.B, group_in(s.B, r), a, states);
      pack(C, states, s.C, group_in(s.C, r), a, states);
      for (int64_t k = 0; k < blocks; ++k) {
        const Place p(s, r, r.first_block + k);
        Real *A = all_A + k * per_block, *h = all_h + k * per_block;
        prefetch_block(r, k + 1 < blocks ? k + 1 : 0, k + 1 < blocks ? a : next, {&s.u, &s.delta, &s.z, &s.out});
        if (s.chunk_states)
          for (int n = 0; n < states; ++n)
            memcpy(chunk_state(p, chunk) + n * d, h + n * kBlock, p.width * sizeof(Real));
        pack_row(bias, parameter(s.bias, p), p.width);
        pack_row(D, parameter(s.D, p), p.width);
        pack(u, kBlock, s.u, p.in(s.u), a, p.width);
        pack(step, kBlock, s.delta, p.in(s.delta), a, p.width);
        make_steps(a.count, s.softplus, bias, step);
        multiply(a.count, step, u, drive);
        sweep(a.count, states, step, drive, A, B, C, h, y);
        finish(a, p, u, D, y, drive);
      }
    }
    for (int64_t k = 0; k < blocks; ++k) {
      const Place p(s, r, r.first_block + k);
      for (int c = 0; c < p.width; ++c)
        for (int n = 0; n < states; ++n)
          ((Real*)s.last_state)[(p.batch * d + p.channel + c) * states + n] = all_h[k * per_block + n * kBlock + c];
    }
    return 0;
  }

  // Skip and gate, and out to memory.
  void finish(const Addresses& a, const Place& p, const Real* u, const Real* D, Real* y, Real* z) const {
    typedef Block<Real> V;
    const V skip = V::load(D);
    for (int t = 0; t < a.count * kBlock; t += kBlock) (V::load(y + t) + V::load(u + t) * skip).store(y + t);
    if (s.z.data) {
      pack(z, kBlock, s.z, p.in(s.z), a, p.width);
      for (int t = 0; t < a.count * kBlock; t += kBlock) {
        const V gate = V::load(z + t);
        (V::load(y + t) * (gate * sigmoid(gate))).store(y + t);
      }
    }
    unpack(y, kBlock, s.out, p.in(s.out), a, p.width);
  }

  // The gradients of the chunks [first_chunk, last_chunk), from the last one to the first.
  int backward(int64_t task, int64_t first_chunk, int64_t last_chunk) const {
    const Shares shares = share(s);
    const Range r(s, shares, task);
    const int64_t blocks = r.last_block - r.first_block;
    const int64_t tile = kChunk * kBlock, per_block = int64_t(states) * kBlock, per_group = int64_t(kChunk) * states;
    Scratch scratch;
    const int64_t lanes = Block<Real>::lanes;
    if (!scratch.allocate((8 * tile + 2 * kBlock + (2 + 2 * lanes) * per_group + (3 * kChunk + 2) * per_block +
                           2 * blocks * per_block) * sizeof(Real), 20))
      return 1;
    Tiles x;
    Real** const tiles[] = {&x.u, &x.step, &x.drive, &x.dy, &x.z, &x.y, &x.ddrive, &x.dexponent};
    for (Real** array : tiles) *array = scratch.take<Real>(tile);
    x.bias = scratch.take<Real>(kBlock), x.D = scratch.take<Real>(kBlock);
    x.B = scratch.take<Real>(per_group), x.C = scratch.take<Real>(per_group);
    x.dB = scratch.take<Real>(lanes * per_group), x.dC = scratch.take<Real>(lanes * per_group);
    x.decay = scratch.take<Real>(2 * kChunk * per_block), x.history = scratch.take<Real>((kChunk + 1) * per_block);
    x.dA = scratch.take<Real>(per_block);
    Real *all_A = scratch.take<Real>(blocks * per_block), *all_adjoint = scratch.take<Real>(blocks * per_block);
    for (int64_t k = 0; k < blocks; ++k) {
      const Place p(s, r, r.first_block + k);
      load_A(all_A + k * per_block, p);
      load_adjoint(all_adjoint + k * per_block, p, last_chunk == chunks);
    }

    Addresses a, next = chunk_addresses(last_chunk - 1);
    for (int64_t chunk = last_chunk - 1; chunk >= first_chunk; --chunk) {
      a = next, next = chunk_addresses(chunk - 1);
      pack(x.B, states, s.B, group_in(s.B, r), a, states);
      pack(x.C, states, s.C, group_in(s.C, r), a, states);
      for (int64_t k = 0; k < blocks; ++k) {
        const int64_t block = r.first_block + k, partition = block / shares.partition;
        x.A = all_A + k * per_block, x.adjoint = all_adjoint + k * per_block;
        prefetch_block(r, k + 1 < blocks ? k + 1 : 0, k + 1 < blocks ? a : next,
                       {&s.u, &s.delta, &s.z, &s.dout, &s.du, &s.ddelta, &s.dz});
        backward_tile(x, a, Place(s, r, block), chunk);
        Real* dB = (Real*)s.partial +
                   (((r.batch * s.groups + r.group) * shares.partitions + partition) * 2 * s.span +
                    (chunk - first_chunk) * kChunk) * states;
        const bool add = block % shares.partition != 0;
        sum_lanes(int64_t(a.count) * states, x.dB, dB, add);
        sum_lanes(int64_t(a.count) * states, x.dC, dB + s.span * states, add);
      }
    }
    for (int64_t k = 0; k < blocks; ++k) {
      const Place p(s, r, r.first_block + k);
      for (int n = 0; n < states; ++n)
        memcpy((Real*)s.carry + (p.batch * states + n) * d + p.channel, all_adjoint + k * per_block + n * kBlock,
               p.width * sizeof(Real));
    }
    return 0;
  }

  struct Tiles {
    Real *u, *step, *drive, *dy, *z, *y, *ddrive, *dexponent;  // [kChunk][kBlock]
    Real *bias, *D;          // [kBlock]
    Real *B, *C;             // [kChunk][states]
    Real *dB, *dC;           // [kChunk][states][lanes]
    Real* decay;             // [kChunk][states][2][kBlock]
    Real* history;           // [kChunk + 1][states][kBlock]
    Real *A, *adjoint, *dA;  // [states][kBlock]
  };

  void load_adjoint(Real* adjoint, const Place& p, bool last) const {
    if (last) {
      Addresses a;  // the states take the place of tokens
      for (int n = 0; n < states; n += kChunk) {
        locate(a, states, 1, false, n, int(smaller(kChunk, states - n)));
        pack(adjoint + n * kBlock, kBlock, s.dlast, p.in(s.dlast), a, p.width);
      }
    } else {
      for (int n = 0; n < states; ++n)
        pack_row(adjoint + n * kBlock, (const Real*)s.carry + (p.batch * states + n) * d + p.channel, p.width);
    }
  }

  void backward_tile(const Tiles& x, const Addresses& a, const Place& p, int64_t chunk) const {
    typedef Block<Real> V;
    const int values = a.count * kBlock;
    pack_row(x.bias, parameter(s.bias, p), p.width);
    pack_row(x.D, parameter(s.D, p), p.width);
    pack(x.u, kBlock, s.u, p.in(s.u), a, p.width);
    pack(x.step, kBlock, s.delta, p.in(s.delta), a, p.width);
    make_steps(a.count, s.softplus, x.bias, x.step);
    multiply(a.count, x.step, x.u, x.drive);
    for (int n = 0; n < states; ++n) pack_row(x.history + n * kBlock, chunk_state(p, chunk) + n * d, p.width);

    pack(x.dy, kBlock, s.dout, p.in(s.dout), a, p.width);
    const V skip = V::load(x.D);
    if (s.z.data) {
      pack(x.z, kBlock, s.z, p.in(s.z), a, p.width);
      for (int t = 0; t < values; t += kBlock) {
        const V z = V::load(x.z + t), dout = V::load(x.dy + t), sig = sigmoid(z), silu = z * sig;
        (dout * silu).store(x.dy + t);
        (dout * (sig + silu * (V::zero() + Real(1) - sig))).store(x.z + t);  // dout silu'(z)
      }
      sweep_and_keep<true>(a.count, states, x.step, x.drive, x.A, x.B, x.C, x.dy, x.decay, x.history, x.dC, x.y);
      for (int t = 0; t < values; t += kBlock)
        (V::load(x.z + t) * (V::load(x.y + t) + V::load(x.u + t) * skip)).store(x.y + t);
      unpack(x.y, kBlock, s.dz, p.in(s.dz), a, p.width);
    } else {
      sweep_and_keep<false>(a.count, states, x.step, x.drive, x.A, x.B, x.C, x.dy, x.decay, x.history, x.dC, x.y);
    }

    memset(x.dA, 0, size_t(states) * kBlock * sizeof(Real));
    sweep_back(a.count, states, x.step, x.drive, x.A, x.B, x.C, x.dy, x.decay, x.history, x.adjoint, x.dA, x.dB,
               x.ddrive, x.dexponent);
    V dD = V::zero(), dbias = V::zero();
    for (int t = 0; t < values; t += kBlock) {
      const V u = V::load(x.u + t), step = V::load(x.step + t), dy = V::load(x.dy + t), ddrive = V::load(x.ddrive + t);
      const V dstep = u * ddrive + V::load(x.dexponent + t) * Real(kLn2);
      const V ddelta = s.softplus ? dstep * softplus_slope(step) : dstep;
      (skip * dy + step * ddrive).store(x.ddrive + t);
      ddelta.store(x.dexponent + t);
      dD = dD + dy * u;
      dbias = dbias + ddelta;
    }
    unpack(x.ddrive, kBlock, s.du, p.in(s.du), a, p.width);
    unpack(x.dexponent, kBlock, s.ddelta, p.in(s.ddelta), a, p.width);

    dD.store(x.D), dbias.store(x.bias);
    for (int n = 0; n < states + 2; ++n) {
      double* sums = s.sums + (p.batch * (states + 2) + n) * d + p.channel;
      const Real* summand = n < states ? x.dA + n * kBlock : n == states ? x.D : x.bias;
      for (int c = 0; c < p.width; ++c) sums[c] += summand[c];
    }
  }

  // dB and dC of one chunk of a batch entry and group: the shares of the partitions in order.
  int reduce(int64_t task, int64_t first_chunk, int64_t last_chunk) const {
    const int64_t partitions = share(s).partitions, in_span = last_chunk - first_chunk;
    const int64_t chunk = task % in_span, group = task / in_span % s.groups, batch = task / in_span / s.groups;
    Scratch scratch;
    if (!scratch.allocate(int64_t(kChunk) * states * sizeof(Real), 1)) return 1;
    Real* sum = scratch.take<Real>(int64_t(kChunk) * states);
    const Addresses a = chunk_addresses(first_chunk + chunk);
    const int64_t count = int64_t(a.count) * states;
    for (int which = 0; which < 2; ++which) {
      const UmambaTensor& x = which ? s.dC : s.dB;
      const int64_t share = (batch * s.groups + group) * partitions * 2 + which;
      const Real* from = (const Real*)s.partial + (share * s.span + chunk * kChunk) * states;
      memcpy(sum, from, size_t(count) * sizeof(Real));
      for (int64_t k = 1; k < partitions; ++k) {
        from += 2 * s.span * states;
        for (int64_t i = 0; i < count; ++i) sum[i] += from[i];
      }
      unpack(sum, states, x, batch * x.batch_stride + group * x.group_stride, a, states);
    }
    return 0;
  }

  // The parameters' gradients: the sums of the batch entries in order.
  void finish_sums() const {
    for (int64_t n = 0; n < states + 2; ++n) {
      Real* to = n < states ? (Real*)s.dA + n * d : (Real*)(n == states ? s.dD : s.dbias);
      for (int64_t c = 0; to && c < d; ++c) {
        double sum = 0;
        for (int64_t b = 0; b < s.batch; ++b) sum += s.sums[(b * (states + 2) + n) * d + c];
        to[c] = Real(sum);
      }
    }
  }
};

struct Span {
  const UmambaScan* s;
  int64_t first_chunk, last_chunk;
};

template <class Real>
int run_scan_forward(const UmambaScan& s) {
  return umamba_parallel(s.threads, s.batch * s.groups * share(s).per_group, [](const void* context, int64_t task) {
    return Scan<Real>(*(const UmambaScan*)context).forward(task);
  }, &s);
}

template <class Real>
int run_scan_backward(const UmambaScan& s) {
  const int64_t chunks = ceil_div(s.length, kChunk), per_span = s.span / kChunk, tasks = s.batch * s.groups;
  int failed = 0;
  for (int64_t end = chunks; end > 0; end -= per_span) {
    const Span span = {&s, end > per_span ? end - per_span : 0, end};
    failed |= umamba_parallel(s.threads, tasks * share(s).per_group, [](const void* context, int64_t task) {
      const Span& span = *(const Span*)context;
      return Scan<Real>(*span.s).backward(task, span.first_chunk, span.last_chunk);
    }, &span);
    failed |= umamba_parallel(s.threads, tasks * (end - span.first_chunk), [](const void* context, int64_t task) {
      const Span& span = *(const Span*)context;
      return Scan<Real>(*span.s).reduce(task, span.first_chunk, span.last_chunk);
    }, &span);
  }
  Scan<Real>(s).finish_sums();
  return failed;
}

int scan_forward(const UmambaScan& s) {
  return s.is_double ? run_scan_forward<double>(s) : run_scan_forward<float>(s);
}
int scan_backward(const UmambaScan& s) {
  return s.is_double ? run_scan_backward<double>(s) : run_scan_backward<float>(s);
}

}  // namespace
