// The CUDA driver, opened at run time: the library links neither it nor the CUDA runtime.
#pragma once
#include <dlfcn.h>

#include <cstdint>
#include <string>

#include "error.hpp"

namespace deltart {

class Driver {
 public:
  using Status = int;
  using Handle = void*;  // CUcontext, CUmodule, CUfunction and CUstream

  // Throws where `library` can't be opened or is no CUDA driver.
  explicit Driver(const char* library) : handle_(dlopen(library, RTLD_NOW | RTLD_LOCAL)) {
    if (!handle_) throw Error(dlerror(), "the CUDA driver", "install NVIDIA's driver");
    load(initialize, "cuInit");
    load(get_error_name, "cuGetErrorName");
    load(get_context, "cuCtxGetCurrent");
    load(set_context, "cuCtxSetCurrent");
    load(get_device, "cuCtxGetDevice");
    load(retain_primary, "cuDevicePrimaryCtxRetain");
    load(get_attribute, "cuDeviceGetAttribute");
    load(load_module, "cuModuleLoadData");
    load(get_function, "cuModuleGetFunction");
    load(set_function_attribute, "cuFuncSetAttribute");
    load(launch_kernel, "cuLaunchKernel");
    check(initialize(0));
  }

  // Throws unless the driver answered success.
  void check(Status status) const {
    if (status == 0) return;
    const char* text = nullptr;
    get_error_name(status, &text);
    throw Error("the CUDA driver answered " + (text ? std::string(text) : std::to_string(status)), "CUDA_SUCCESS");
  }

  // The calling thread's context. A thread without one gets device 0's primary context, as in the CUDA runtime.
  Handle context() const {
    Handle current = nullptr;
    check(get_context(&current));
    if (current) return current;
    check(retain_primary(&current, 0));
    check(set_context(current));
    return current;
  }

  // Of the current device; `which` is a CUdevice_attribute.
  int64_t attribute(int which) const {
    int device = 0, value = 0;
    check(get_device(&device));
    check(get_attribute(&value, which, device));
    return value;
  }

  Status (*initialize)(unsigned);
  Status (*get_error_name)(Status, const char**);
  Status (*get_context)(Handle*);
  Status (*set_context)(Handle);
  Status (*get_device)(int*);
  Status (*retain_primary)(Handle*, int);
  Status (*get_attribute)(int*, int, int);
  Status (*load_module)(Handle*, const void*);
  Status (*get_function)(Handle*, Handle, const char*);
  Status (*set_function_attribute)(Handle, int, int);
  Status (*launch_kernel)(Handle, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, Handle, void**,
                          void**);

 private:
  template <class Function>
  void load(Function& function, const char* name) {
    function = reinterpret_cast<Function>(dlsym(handle_, name));
    if (!function) throw Error(std::string("the CUDA driver has no ") + name, "a driver of CUDA 12 or later");
  }

  void* handle_;
};

}  // namespace deltart
