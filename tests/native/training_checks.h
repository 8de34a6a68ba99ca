// What the tests of training kernels share: memory, numbers, and comparison with float64.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <iostream>
#include <limits>
#include <memory>
#include <new>
#include <string>
#include <utility>
#include <vector>

#include "kernels.h"
#include "problem.h"

namespace dtag::test {

using Floats = std::vector<float>;
using Doubles = std::vector<double>;

// As kernels want their workspace: aligned to 64 bytes, no longer than was asked for, so that a
// sanitizer sees what goes beyond, and full of NaN, so that what is read before it was written shows.
class Workspace {
 public:
  explicit Workspace(size_t count)
      : memory_(static_cast<float*>(::operator new(std::max<size_t>(count, 1) * sizeof(float),
                                                   std::align_val_t{64}))) {
    std::fill_n(memory_.get(), count, std::numeric_limits<float>::quiet_NaN());
  }
  float* get() const { return memory_.get(); }

 private:
  struct Free {
    void operator()(float* memory) const { ::operator delete(memory, std::align_val_t{64}); }
  };
  std::unique_ptr<float, Free> memory_;
};

inline Floats drawn(Random& random, size_t count, float scale = 1.0f) {
  Floats found(count);
  for (float& each : found) each = scale * random.uniform(-1.0f, 1.0f);
  return found;
}

// The largest difference so far of what a kernel found, and from what it was expected to be.
class Difference {
 public:
  void add(double found, double expected) {
    const double off = std::abs(found - expected) / (1.0 + std::abs(expected));
    if (!(off <= worst_)) worst_ = std::isnan(off) ? std::numeric_limits<double>::infinity() : off;
  }
  template <typename Found, typename Expected>
  void add(const std::vector<Found>& found, const std::vector<Expected>& expected) {
    for (size_t i = 0; i < found.size(); ++i) add(found[i], expected[i]);
  }
  double worst() const { return worst_; }

 private:
  double worst_ = 0.0;
};

// Counts failures, over all instruction sets that train here.
class Report {
 public:
  void check(const std::string& what, double off, double most) {
    worst_ = std::max(worst_, off);
    ++checks_;
    if (off <= most) return;
    ++failures_;
    std::cout << "FAILED " << kernels().isa << ' ' << what << ": off by " << off << '\n';
  }
  void check(const std::string& what, bool holds) {
    ++checks_;
    if (holds) return;
    ++failures_;
    std::cout << "FAILED " << kernels().isa << ' ' << what << '\n';
  }

  // Calls test(report, kernels) for each; the exit code.
  template <typename Test>
  static int over_all_isas(const Test& test) {
    int failures = 0;
    for (const std::string& isa : runnable_isas()) {
      select_isa(isa);
      if (kernels().training == nullptr) continue;
      Report report;
      test(report, *kernels().training);
      std::cout << isa << ": " << report.checks_ << " checks, off by " << report.worst_ << '\n';
      failures += report.failures_;
    }
    return failures == 0 ? 0 : 1;
  }

 private:
  int checks_ = 0, failures_ = 0;
  double worst_ = 0.0;
};

}  // namespace dtag::test
