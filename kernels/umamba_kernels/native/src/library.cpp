// What the library exports, the choice of the kernels, and the threads.
#include <pthread.h>
#include <string.h>

#include "interface.h"

#define UMAMBA_EXPORT extern "C" __attribute__((visibility("default")))

extern const UmambaKernels umamba_baseline;
#if defined(__x86_64__)
extern const UmambaKernels umamba_avx2, umamba_avx512;
#endif

namespace {

struct Variant {
  const char* name;
  const UmambaKernels* kernels;
  bool (*supported)();
};

// Best first.
const Variant variants[] = {
#if defined(__x86_64__)
    {"avx512", &umamba_avx512,
     [] {
       return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
              __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
     }},
    {"avx2", &umamba_avx2, [] { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }},
#endif
    {"baseline", &umamba_baseline, [] { return true; }},
};
const int variant_count = sizeof variants / sizeof *variants;

bool can_run(const Variant& v) {
#if defined(__x86_64__)
  __builtin_cpu_init();
#endif
  return v.supported();
}

const Variant* best() {
  const Variant* v = variants;
  while (!can_run(*v)) ++v;
  return v;
}

const Variant* in_use = best();

const UmambaKernels& kernels() { return *in_use->kernels; }

struct Work {
  int64_t next, tasks;
  int (*work)(const void*, int64_t);
  const void* context;
  int failed;
};

// GOMP_parallel of an OpenMP runtime: runs a function on a team of threads.
typedef void (*Team)(void (*work)(void*), void* context, unsigned threads, unsigned flags);
Team team = nullptr;

void* run(void* argument) {
  Work& w = *(Work*)argument;
  for (;;) {
    const int64_t task = __atomic_fetch_add(&w.next, 1, __ATOMIC_RELAXED);
    if (task >= w.tasks) return nullptr;
    const int failed = w.work(w.context, task);
    if (failed) __atomic_store_n(&w.failed, failed, __ATOMIC_RELAXED);
  }
}

}  // namespace

// Without a team threads live for one call; where one cannot be created the others do its work.
int umamba_parallel(int threads, int64_t tasks, int (*work)(const void*, int64_t), const void* context) {
  enum { most = 256 };
  pthread_t others[most];
  Work w = {0, tasks, work, context, 0};
  if (team && threads > 1 && tasks > 1) {
    team([](void* w) { run(w); }, &w, unsigned(tasks < threads ? tasks : threads), 0);
    return w.failed;
  }
  int started = 0;
  while (started < most && started + 1 < threads && started + 1 < tasks &&
         !pthread_create(&others[started], nullptr, run, &w))
    ++started;
  run(&w);
  for (int i = 0; i < started; ++i) pthread_join(others[i], nullptr);
  return w.failed;
}

UMAMBA_EXPORT int umamba_abi() { return UMAMBA_ABI; }
// The instruction sets this CPU can run, best first, and the one in use.
UMAMBA_EXPORT const char* umamba_isa(int index) {
  for (int i = 0; i < variant_count; ++i)
    if (can_run(variants[i]) && index-- == 0) return variants[i].name;
  return nullptr;
}
UMAMBA_EXPORT const char* umamba_isa_in_use() { return in_use->name; }
// Use another instruction set from now on. Returns 0, or 1 if this CPU cannot.
UMAMBA_EXPORT int umamba_use_isa(const char* name) {
  for (const Variant& v : variants)
    if (!strcmp(v.name, name) && can_run(v)) {
      in_use = &v;
      return 0;
    }
  return 1;
}

// Work on the threads of an OpenMP runtime from now on.
UMAMBA_EXPORT void umamba_use_team(Team gomp_parallel) { team = gomp_parallel; }

UMAMBA_EXPORT int umamba_scan_forward(const UmambaScan* s) { return kernels().scan_forward(*s); }
UMAMBA_EXPORT int umamba_scan_backward(const UmambaScan* s) { return kernels().scan_backward(*s); }
UMAMBA_EXPORT int umamba_conv_forward(const UmambaConv* s) { return kernels().conv_forward(*s); }
UMAMBA_EXPORT int umamba_conv_backward(const UmambaConv* s) { return kernels().conv_backward(*s); }
