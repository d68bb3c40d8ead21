/* A CUDA driver that launches nothing: it writes down what it is asked. A module's image is text, one line per kernel:
   "<name> <kinds of its arguments>", p for a pointer, i for an int, l for a long long, f for a float. */
#include <stdint.h>
#include <stdio.h>
#include <string.h>

static char record[1 << 20];
static size_t used;
static void* current;
static int shared_limit = 232448, failing_launch;

#define SAY(...) (used += used < sizeof record - 4096 ? snprintf(record + used, 4096, __VA_ARGS__) : 0)

const char* recorded(void) { return record; }
void reset(int limit, int fail) { used = 0, record[0] = 0, current = 0, shared_limit = limit, failing_launch = fail; }

int cuInit(unsigned flags) { return SAY("init %u\n", flags), 0; }
int cuGetErrorName(int status, const char** name) { return *name = status == 999 ? "CUDA_ERROR_UNKNOWN" : 0, 0; }
int cuCtxGetCurrent(void** context) { return *context = current, 0; }
int cuCtxSetCurrent(void* context) { return current = context, SAY("context %p\n", context), 0; }
int cuCtxGetDevice(int* device) { return *device = 0, current ? 0 : 201; }
int cuDevicePrimaryCtxRetain(void** context, int device) {
  return *context = (void*)0x77, SAY("retain %d\n", device), 0;
}
int cuDeviceGetAttribute(int* value, int attribute, int device) {
  int facts[] = {[16] = 132, [75] = 9, [76] = 0, [97] = shared_limit};
  return *value = facts[attribute], SAY("attribute %d of %d\n", attribute, device), 0;
}
int cuModuleLoadData(void** module, const void* image) {
  return *module = (void*)image, SAY("load\n"), current ? 0 : 201;
}

int cuModuleGetFunction(void** function, void* module, const char* name) {
  size_t length = strlen(name);
  for (const char* line = module; *line; line = strchr(line, '\n') + 1)
    if (!strncmp(line, name, length) && line[length] == ' ') return *function = (void*)line, SAY("get %s\n", name), 0;
  return 500;
}

int cuFuncSetAttribute(void* function, int attribute, int value) {
  return SAY("set %.*s %d %d\n", (int)strcspn(function, " "), (char*)function, attribute, value), 0;
}

int cuLaunchKernel(void* function, unsigned x, unsigned y, unsigned z, unsigned bx, unsigned by, unsigned bz,
                   unsigned shared, void* stream, void** arguments, void** extra) {
  const char* kinds = strchr(function, ' ') + 1;
  if (failing_launch || by != 1 || bz != 1 || extra) return 999;
  SAY("%p %.*s %u %u %u %u %u", stream, (int)strcspn(function, " "), (char*)function, x, y, z, bx, shared);
  for (; *kinds != '\n'; ++kinds, ++arguments) {
    uint32_t bits = *(uint32_t*)*arguments;
    if (*kinds == 'p') SAY(" p%lx", (unsigned long)*(uint64_t*)*arguments);
    if (*kinds == 'i') SAY(" i%d", (int32_t)bits);
    if (*kinds == 'l') SAY(" l%lld", *(long long*)*arguments);
    if (*kinds == 'f') SAY(" f%08x", bits);
  }
  return SAY("\n"), 0;
}
