// What the library exports; exports.map keeps everything else inside it.
#include "creator.hpp"

#define EXPORT extern "C"

// Called by IPluginRegistry::loadLibrary.
EXPORT void setLoggerFinder(nvinfer1::ILoggerFinder* finder) {
  deltart::guarded(0, [&] { return deltart::Failures::get().use(finder ? finder->findLogger() : nullptr), 0; });
}

// Called by IPluginRegistry::loadLibrary, which registers what it returns.
EXPORT nvinfer1::IPluginCreatorInterface* const* getCreators(int32_t& count) {
  const auto& all = deltart::creators();
  count = static_cast<int32_t>(all.size());
  return all.data();
}

// Registers every plugin with `registry` (an IPluginRegistry*), errors going to `logger` (an ILogger*, or null).
// Returns whether all were taken; a name that is already registered is refused.
EXPORT bool deltart_register_plugins(void* registry, void* logger) {
  return deltart::guarded(false, [&] {
    deltart::Failures::get().use(static_cast<nvinfer1::ILogger*>(logger));
    for (nvinfer1::IPluginCreatorInterface* creator : deltart::creators())
      if (!static_cast<nvinfer1::IPluginRegistry*>(registry)->registerCreator(*creator, ""))
        throw deltart::Error("TensorRT refused a plugin", "names that no other plugin has");
    return true;
  });
}

// Copies the first error since the last call into `text`; returns its length, 0 where there was none.
EXPORT size_t deltart_take_failure(char* text, size_t room) {
  return deltart::guarded<size_t>(0, [&] {
    std::string failure = deltart::Failures::get().take();
    if (room) text[failure.copy(text, room - 1)] = '\0';
    return failure.size();
  });
}

// What the library must have in common with the code that builds and runs plans.
EXPORT const char* deltart_contract() { return deltart::CONTRACT_DIGEST; }

// The major version of the headers it was compiled with.
EXPORT int32_t deltart_tensorrt_major() { return NV_TENSORRT_MAJOR; }
