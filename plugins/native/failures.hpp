// Where an error goes that may not leave the library: TensorRT's log, and a slot that the host can read.
#pragma once
#include <NvInfer.h>

#include <mutex>
#include <string>

#include "error.hpp"

namespace deltart {

class Failures {
 public:
  static Failures& get() {
    static Failures failures;
    return failures;
  }

  void use(nvinfer1::ILogger* logger) {
    std::lock_guard<std::mutex> lock(mutex_);
    logger_ = logger;
  }

  // Logs `text` as an error; the first one since `take` is kept.
  void record(const std::string& text) noexcept {
    try {
      std::lock_guard<std::mutex> lock(mutex_);
      if (first_.empty()) first_ = text;
      if (logger_) logger_->log(nvinfer1::ILogger::Severity::kERROR, ("DeltaRT: " + text).c_str());
    } catch (...) {  // out of memory: the caller still answers with an error code
    }
  }

  // The first error since the last call, or an empty text; it is no longer kept.
  std::string take() {
    std::lock_guard<std::mutex> lock(mutex_);
    std::string text;
    text.swap(first_);
    return text;
  }

 private:
  std::mutex mutex_;
  std::string first_;
  nvinfer1::ILogger* logger_ = nullptr;
};

// `body()`, or `otherwise` after recording what it threw: nothing may be thrown into TensorRT.
template <class Result, class Body>
Result guarded(Result otherwise, Body body) noexcept {
  try {
    return body();
  } catch (const std::exception& error) {
    Failures::get().record(error.what());
  } catch (...) {
    Failures::get().record("an unknown exception");
  }
  return otherwise;
}

}  // namespace deltart
