// Errors say what was found, what was expected and what to do, as DeltaRTError does in Python.
#pragma once
#include <exception>
#include <string>
#include <utility>

namespace deltart {

struct Error : std::exception {
  std::string found, expected, hint, text;

  explicit Error(std::string found_, std::string expected_ = "", std::string hint_ = "")
      : found(std::move(found_)), expected(std::move(expected_)), hint(std::move(hint_)), text(found) {
    if (!expected.empty()) text += "\n  expected: " + expected;
    if (!hint.empty()) text += "\n  hint:     " + hint;
  }

  const char* what() const noexcept override { return text.c_str(); }
};

// Throws for a shape that the kernels do not take.
inline void require(bool condition, const std::string& found, const std::string& expected) {
  if (!condition) throw Error(found, expected, "use the portable body of this op, or extend its kernel");
}

}  // namespace deltart
