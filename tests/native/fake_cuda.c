// A CUDA driver for tests on machines without one: it writes what it is asked to do to the file FAKE_CUDA_LOG.
// FAKE_CUDA_SIZES holds the sizes of a kernel's arguments, one digit each; FAKE_CUDA_FAILS names a function that fails.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int answer(const char* function, const char* format, ...) {
    FILE* log = fopen(getenv("FAKE_CUDA_LOG"), "a");
    va_list list;
    va_start(list, format);
    fprintf(log, "%s ", function);
    vfprintf(log, format, list);
    fputc('\n', log);
    fclose(log);
    const char* fails = getenv("FAKE_CUDA_FAILS");
    return fails && !strcmp(fails, function) ? 1 : 0;
}

int cuGetProcAddress_v2(const char* symbol, void** function, int version, uint64_t flags, int* status) {
    *function = dlsym(RTLD_DEFAULT, symbol);
    char newer[200];
    snprintf(newer, sizeof newer, "%s_v2", symbol);
    if (!*function) *function = dlsym(RTLD_DEFAULT, newer);
    if (status) *status = *function ? 0 : 1;
    return 0;
}
int cuGetProcAddress(const char* symbol, void** function, int version, uint64_t flags) {
    return cuGetProcAddress_v2(symbol, function, version, flags, 0);
}
int cuInit(unsigned flags) { return 0; }
int cuDriverGetVersion(int* version) { *version = 13000; return 0; }
int cuDevicePrimaryCtxRetain_v2(void** context, int device) {
    *context = (void*)0x10;
    return answer("cuDevicePrimaryCtxRetain", "device %d", device);
}
int cuDevicePrimaryCtxRetain(void** context, int device) { return cuDevicePrimaryCtxRetain_v2(context, device); }
static __thread void* current;
int cuCtxGetCurrent(void** context) { *context = current; return 0; }
int cuCtxSetCurrent(void* context) { current = context; return answer("cuCtxSetCurrent", "context %p", context); }
int cuLibraryLoadData(void** library, const void* code, void* a, void* b, unsigned c, void* d, void* e, unsigned f) {
    *library = (void*)0x20;
    return answer("cuLibraryLoadData", "code %.5s options %u %u", (const char*)code, c, f);
}
int cuLibraryGetKernel(void** kernel, void* library, const char* name) {
    *kernel = (void*)0x30;
    return answer("cuLibraryGetKernel", "library %p name %s", library, name);
}
int cuKernelSetAttribute(int attribute, int value, void* kernel, int device) {
    return answer("cuKernelSetAttribute", "attribute %d value %d kernel %p device %d", attribute, value, kernel, device);
}
int cuLaunchKernel(void* f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned shared,
                   void* stream, void** arguments, void** extra) {
    char text[1000] = "";
    const char* sizes = getenv("FAKE_CUDA_SIZES");
    for (int k = 0; sizes[k]; ++k) {
        int64_t value = 0;
        memcpy(&value, arguments[k], sizes[k] - '0');
        sprintf(text + strlen(text), " %lld", (long long)value);
    }
    return answer("cuLaunchKernel", "kernel %p grid %u %u %u block %u %u %u shared %u stream %p extra %p arguments%s", f, gx, gy,
                  gz, bx, by, bz, shared, stream, (void*)extra, text);
}
