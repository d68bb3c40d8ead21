// The embedded kernels on the GPUs that are in use. Nothing is allocated by a launch; its stream may be capturing.
#pragma once
#include <map>
#include <mutex>
#include <vector>

#include "driver.hpp"
#include "launch.hpp"

namespace deltart {

// One compiled .cu file, by its path in plugins/.
struct Fatbin {
  const char* source;
  const unsigned char* image;
};

}  // namespace deltart

#include <deltart_fatbins.inc>  // FATBINS

namespace deltart {

class Kernels {
 public:
  explicit Kernels(const char* driver) : driver_(driver) {}

  // Loads every source of the op in `folder` into the current context, so that no launch has to.
  void prepare(const std::string& folder) {
    std::lock_guard<std::mutex> lock(mutex_);
    Device& device = current();
    for (const Fatbin& fatbin : FATBINS)
      if (std::string(fatbin.source).rfind(folder + "/", 0) == 0) module(device, fatbin.source);
  }

  // Adds to `call` what its launches may depend on besides sizes and types.
  void describe_device(Call& call) {
    std::lock_guard<std::mutex> lock(mutex_);
    const Device& device = current();
    call.shared_limit = device.shared_limit;
    call.capability = device.capability;
    call.multiprocessors = device.multiprocessors;
  }

  // Enqueues launches of the op in `folder` on `stream`.
  void run(const std::string& folder, const Launches& launches, Driver::Handle stream) {
    std::string source = folder + "/" + launches.source;
    for (const Launch& launch : launches.list) {
      std::vector<void*> values;
      for (const Argument& argument : launch.args.list) values.push_back(const_cast<Argument::Value*>(&argument.value));
      auto size = [](int64_t value) { return static_cast<unsigned>(value); };
      driver_.check(driver_.launch_kernel(function(source, launch), size(launch.grid[0]), size(launch.grid[1]),
                                          size(launch.grid[2]), size(launch.block), 1, 1, size(launch.shared_bytes),
                                          stream, values.data(), nullptr));
    }
  }

 private:
  static constexpr int64_t DEFAULT_SHARED_BYTES = 48 << 10;  // what a block gets without asking
  static constexpr int MULTIPROCESSOR_COUNT = 16, COMPUTE_CAPABILITY_MAJOR = 75, COMPUTE_CAPABILITY_MINOR = 76;
  static constexpr int MAX_SHARED_MEMORY_PER_BLOCK_OPTIN = 97;  // device attributes
  static constexpr int MAX_DYNAMIC_SHARED_SIZE_BYTES = 8;    // the function attribute that asks for more

  struct Function {
    Driver::Handle handle;
    int64_t shared_bytes;  // granted so far
  };

  struct Device {
    int64_t shared_limit, multiprocessors, capability;  // as in Call
    std::map<std::string, Driver::Handle> modules;
    std::map<std::string, Function> functions;
  };

  Device& current() {
    auto [found, is_new] = devices_.try_emplace(driver_.context());
    Device& device = found->second;
    if (is_new) {
      device.shared_limit = driver_.attribute(MAX_SHARED_MEMORY_PER_BLOCK_OPTIN);
      device.multiprocessors = driver_.attribute(MULTIPROCESSOR_COUNT);
      int64_t major = driver_.attribute(COMPUTE_CAPABILITY_MAJOR), minor = driver_.attribute(COMPUTE_CAPABILITY_MINOR);
      device.capability = 10 * major + minor;
    }
    return device;
  }

  Driver::Handle module(Device& device, const std::string& source) {
    auto found = device.modules.find(source);
    if (found != device.modules.end()) return found->second;
    for (const Fatbin& fatbin : FATBINS) {
      if (source != fatbin.source) continue;
      Driver::Handle loaded = nullptr;
      driver_.check(driver_.load_module(&loaded, fatbin.image));
      return device.modules[source] = loaded;
    }
    throw Error(source + " is not in this library", "a kernel of an op in operators.hpp", "build the library again");
  }

  Driver::Handle function(const std::string& source, const Launch& launch) {
    std::lock_guard<std::mutex> lock(mutex_);
    Device& device = current();
    std::string place = source + ":" + launch.kernel;  // two files may hold kernels of one name
    auto found = device.functions.find(place);
    if (found == device.functions.end()) {
      Driver::Handle handle = nullptr;
      driver_.check(driver_.get_function(&handle, module(device, source), launch.kernel.c_str()));
      found = device.functions.emplace(place, Function{handle, DEFAULT_SHARED_BYTES}).first;
    }
    Function& known = found->second;
    if (launch.shared_bytes > device.shared_limit)
      throw Error(launch.kernel + " asks for " + std::to_string(launch.shared_bytes) + " bytes of shared memory",
                  "at most " + std::to_string(device.shared_limit), "plan with this device's shared_limit");
    if (launch.shared_bytes > known.shared_bytes) {
      int bytes = static_cast<int>(launch.shared_bytes);
      driver_.check(driver_.set_function_attribute(known.handle, MAX_DYNAMIC_SHARED_SIZE_BYTES, bytes));
      known.shared_bytes = launch.shared_bytes;
    }
    return known.handle;
  }

  Driver driver_;
  std::mutex mutex_;
  std::map<Driver::Handle, Device> devices_;
};

}  // namespace deltart
