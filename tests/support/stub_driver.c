/* A CUDA driver whose device is host memory and whose kernels do nothing: as libcuda.so.1 it takes the calls of
   cuda-bindings. At the end of the process it says how often each was made. Graphs hold nothing. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef int Status;
#define CALLS(X) X(alloc) X(free) X(pin) X(unpin) X(zero) X(up) X(down) X(module) X(function) X(launch) X(capture) X(replay)
#define COUNTER(name) static long name##_count;
CALLS(COUNTER)
static int capturing;
static void* handle(long number) { return (void*)(0x1000 + number); }

__attribute__((destructor)) static void say(void) {
#define SAY(name) fprintf(stderr, "stub " #name " %ld\n", name##_count);
  CALLS(SAY)
}

static Status nothing(void) { return 0; }
static Status driver_version(int* version) { return *version = 13000, 0; }
static Status device_get(int* device, int ordinal) { return *device = ordinal, 0; }
static Status device_name(char* name, int room, int device) { return snprintf(name, room, "Stub H100"), 0; }
static Status retain(void** context, int device) { return *context = handle(0), 0; }
static Status attribute(int* value, int which, int device) {
  *value = which == 97 ? 232448 : which == 16 ? 132 : which == 75 ? 9 : 0;
  return 0;
}
static Status mem_alloc(uint64_t* address, size_t nbytes) {
  if (capturing) return 900;
  alloc_count++;
  return *address = (uint64_t)aligned_alloc(256, (nbytes + 511) / 256 * 256), 0;
}
static Status mem_free(uint64_t address) { return free_count++, free((void*)address), 0; }
static Status host_alloc(void** address, size_t nbytes, unsigned flags) {
  return pin_count++, *address = aligned_alloc(256, (nbytes + 511) / 256 * 256), 0;
}
static Status host_free(void* address) { return unpin_count++, free(address), 0; }
static Status memset8(uint64_t to, unsigned char value, size_t n, void* stream) {
  return zero_count++, memset((void*)to, value, n), 0;
}
static Status to_device(uint64_t to, const void* from, size_t n, void* stream) {
  return up_count++, memcpy((void*)to, from, n), 0;
}
static Status to_host(void* to, uint64_t from, size_t n, void* stream) {
  return down_count++, memcpy(to, (void*)from, n), 0;
}
static Status stream_create(void** stream, unsigned flags) { return *stream = handle(1), 0; }
static Status event_create(void** event, unsigned flags) { return *event = handle(2), 0; }
static Status load(void** module, const void* image) { return module_count++, *module = handle(3), 0; }
static Status get_function(void** function, void* module, const char* name) {
  return function_count++, *function = handle(4), 0;
}
// CUlaunchConfig, and an attribute: 6 is CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION.
typedef struct { int id; char pad[4]; int value; char rest[60]; } Attribute;
typedef struct {
  unsigned gx, gy, gz, bx, by, bz, shared;
  void* stream;
  Attribute* attributes;
  unsigned n_attributes;
} Config;
static Status launch(const Config* c, void* function, void** arguments, void** extra) {
  if (!c->gx || !c->gy || !c->gz || c->gy > 65535 || c->gz > 65535 || c->bx > 1024 || c->by != 1 || c->bz != 1) return 1;
  if (c->shared > 232448 || c->stream != handle(1)) return 1;
  if (c->n_attributes != 1 || c->attributes[0].id != 6 || c->attributes[0].value != 1) return 1;
  return launch_count++, 0;
}
static Status begin(void* stream, int mode) { return capture_count++, capturing = 1, 0; }
static Status end(void* stream, void** graph) { return capturing = 0, *graph = handle(5), 0; }
static Status instantiate(void** runnable, void* graph, unsigned long long flags) { return *runnable = handle(6), 0; }
static Status replay(void* runnable, void* stream) { return replay_count++, 0; }
static Status synchronize(void* stream) { return capturing ? 900 : 0; }
static Status elapsed(float* ms, void* first, void* last) { return *ms = 1, 0; }

static const struct {
  const char* name;
  void* call;
} TABLE[] = {
    {"cuDriverGetVersion", driver_version}, {"cuDeviceGet", device_get}, {"cuDeviceGetName", device_name},
    {"cuDevicePrimaryCtxRetain", retain}, {"cuDeviceGetAttribute", attribute}, {"cuMemAlloc", mem_alloc},
    {"cuMemFree", mem_free}, {"cuMemHostAlloc", host_alloc}, {"cuMemFreeHost", host_free},
    {"cuMemsetD8Async", memset8}, {"cuMemcpyHtoDAsync", to_device}, {"cuMemcpyDtoHAsync", to_host},
    {"cuStreamCreate", stream_create}, {"cuEventCreate", event_create}, {"cuModuleLoadData", load},
    {"cuModuleGetFunction", get_function}, {"cuLaunchKernelEx", launch}, {"cuStreamBeginCapture", begin},
    {"cuStreamEndCapture", end}, {"cuGraphInstantiate", instantiate}, {"cuGraphInstantiateWithFlags", instantiate},
    {"cuGraphLaunch", replay}, {"cuStreamSynchronize", synchronize}, {"cuEventElapsedTime", elapsed},
};

Status cuGetProcAddress_v2(const char* name, void** call, int version, uint64_t flags, int* status);
Status cuGetProcAddress(const char* name, void** call, int version, uint64_t flags) {
  return cuGetProcAddress_v2(name, call, version, flags, 0);
}
Status cuGetProcAddress_v2(const char* name, void** call, int version, uint64_t flags, int* status) {
  if (status) *status = 0;
  *call = nothing;
  if (!strncmp(name, "cuGetProcAddress", 16)) *call = cuGetProcAddress_v2;
  for (unsigned i = 0; i < sizeof TABLE / sizeof *TABLE; ++i)
    if (!strcmp(TABLE[i].name, name)) *call = TABLE[i].call;
  return 0;
}
