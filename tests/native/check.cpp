#include "check.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <sstream>
#include <vector>

#include "packed_critic.h"

#if defined(__has_feature)
#if __has_feature(address_sanitizer)
#define DTAG_ADDRESS_SANITIZER
#endif
#elif defined(__SANITIZE_ADDRESS__)
#define DTAG_ADDRESS_SANITIZER
#endif

namespace dtag::test {
namespace {

// AddressSanitizer guards memory itself, against reading too, if nothing stands between.
#if defined(DTAG_ADDRESS_SANITIZER)
constexpr size_t guard = 0;
#else
constexpr size_t guard = 33;
#endif

float float_of(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}
const float unwritten_float = float_of(0x7fc0dead);  // a NaN that nothing else makes
constexpr int64_t unwritten_integer = 0x5a5a5a5a5a5a5a5a;

// `size` elements between guards, all full of a value that none of them should have in the end.
template <typename T>
class Output {
 public:
  Output(int64_t size, T unwritten)
      : unwritten_(unwritten), elements_(static_cast<size_t>(size) + 2 * guard, unwritten) {}

  T* data() { return elements_.data() + guard; }
  const T* data() const { return elements_.data() + guard; }
  size_t size() const { return elements_.size() - 2 * guard; }
  T operator[](int64_t i) const { return data()[i]; }

  bool written_exactly() const {
    for (size_t i = 0; i < elements_.size(); ++i) {
      const bool inside = i >= guard && i < guard + size();
      if ((std::memcmp(&elements_[i], &unwritten_, sizeof(T)) == 0) == inside) return false;
    }
    return true;
  }

 private:
  T unwritten_;
  std::vector<T> elements_;
};

struct Outcome {
  Outcome(const Critic& critic, int64_t rows)
      : actions(rows * critic.action_dim, unwritten_float),
        q(rows, unwritten_float),
        q_initial(rows, unwritten_float),
        distance(rows, unwritten_float),
        best_step(rows, unwritten_integer),
        start(rows, unwritten_integer),
        flips(rows, unwritten_integer),
        dense_steps(rows, unwritten_integer) {}

  Result result() {
    return {actions.data(),   q.data(),        q_initial.data(), best_step.data(),
            start.data(),     distance.data(), flips.data(),     dense_steps.data()};
  }

  template <typename Function>
  void each(Function function) const {
    function("actions", &Outcome::actions);
    function("q", &Outcome::q);
    function("q_initial", &Outcome::q_initial);
    function("distance", &Outcome::distance);
    function("best_step", &Outcome::best_step);
    function("start", &Outcome::start);
    function("flips", &Outcome::flips);
    function("dense_steps", &Outcome::dense_steps);
  }

  std::string not_written_exactly() const {
    std::string wrong;
    each([&](const char* name, auto member) {
      if (!(this->*member).written_exactly()) wrong = std::string(name) + " is not written exactly";
    });
    return wrong;
  }

  // What of these rows differs from rows `first` ... of the whole, bit for bit, with any NaN as
  // good as another.
  std::string not_as_in(const Outcome& whole, int64_t first) const {
    std::ostringstream wrong;
    each([&](const char* name, auto member) {
      const auto &mine = this->*member, &theirs = whole.*member;
      for (size_t i = 0; i < mine.size(); ++i) {
        const auto a = mine.data()[i];
        const auto b = theirs.data()[static_cast<size_t>(first) * (mine.size() / q.size()) + i];
        if (std::memcmp(&a, &b, sizeof(a)) != 0 && (a == a || b == b))
          wrong << name << '[' << i << "] " << a << " instead of " << b << "; ";
      }
    });
    return wrong.str();
  }

  Output<float> actions, q, q_initial, distance;
  Output<int64_t> best_step, start, flips, dense_steps;
};

// `poison` fills the scratch memory; `intact` becomes false if the kernel wrote beyond its end.
Outcome run(const Critic& critic, const Options& options, const Batch& batch, const Kernel& kernel,
            float poison, bool& intact) {
  const WorkspaceSize size = kernel.workspace_size(critic);
  const AlignedFloats floats(size.floats + guard);
  std::fill_n(floats.data(), size.floats + guard, poison);
  constexpr int32_t wild = 0x70000001;
  std::vector<int32_t> indices(size.indices + guard, wild);
  Outcome outcome(critic, batch.rows);
  kernel.run(critic, options, batch, outcome.result(), {floats.data(), indices.data()});
  for (size_t i = 0; i < guard; ++i)
    intact = intact && indices[size.indices + i] == wild &&
             std::memcmp(floats.data() + size.floats + i, &poison, sizeof(poison)) == 0;
  return outcome;
}

Batch batch_of(const Problem& problem) {
  return {problem.settings.rows, problem.settings.starts, problem.observations.data(),
          problem.actions.data()};
}

float in_box(const Options& options, int k, float x) {
  if (options.low == nullptr) return x;
  return x < options.low[k] ? options.low[k] : x > options.high[k] ? options.high[k] : x;
}

std::string out_of_range(const Problem& problem, const Critic& critic, const Options& options,
                         const Outcome& outcome, int64_t row) {
  const int64_t starts = problem.settings.starts;
  const int n = critic.action_dim;
  const int64_t step = outcome.best_step[row], start = outcome.start[row];
  if (step < 0 || step > options.steps) return "best_step " + std::to_string(step);
  if (start < 0 || start >= starts) return "start " + std::to_string(start);
  if (outcome.flips[row] < 0) return "flips " + std::to_string(outcome.flips[row]);
  if (outcome.dense_steps[row] < 0 || outcome.dense_steps[row] > starts * options.steps)
    return "dense_steps " + std::to_string(outcome.dense_steps[row]);
  double squares = 0.0;
  for (int k = 0; k < n; ++k) {
    const float from = in_box(options, k, problem.actions[(row * starts + start) * n + k]);
    const float to = outcome.actions[row * n + k];
    // Not so of a NaN, which only a starting point brings along.
    if (std::isnan(to) && !std::isnan(from)) return "an action that became NaN";
    if (in_box(options, k, to) != to && !std::isnan(to)) return "an action outside the box";
    squares += (static_cast<double>(to) - from) * (static_cast<double>(to) - from);
  }
  const double distance = std::sqrt(squares);
  if (std::isfinite(squares) && squares < 1e30) {
    if (!(std::abs(outcome.distance[row] - distance) <= 1e-5 * distance + 1e-18))
      return "distance " + std::to_string(outcome.distance[row]) + " instead of " +
             std::to_string(distance);
    // Rounding of the action itself comes on top.
    if (options.max_distance >= 0.0f && distance > options.max_distance * (1 + 1e-5) + 1e-5)
      return "distance " + std::to_string(distance) + " outside the ball";
  }
  if (options.select == Select::best && std::isfinite(outcome.q_initial[row]) &&
      !(outcome.q[row] >= outcome.q_initial[row]))
    return "q " + std::to_string(outcome.q[row]) + " below q_initial";
  return "";
}

// The problem with all numbers a little off. Its critic is in float32: the shake of a number that
// is then rounded to bfloat16 would be none, or a leap.
struct Shaken {
  Shaken(const Problem& of, uint64_t seed)
      : problem(of.as_packed().shaken(seed)), critic(problem.pack()) {}

  Problem problem;
  PackedCritic critic;
};

// What the scalar kernel says of one row of a problem and of a candidate in it.
struct Expected {
  Expected(const Problem& problem, const Critic& critic, int64_t row, int64_t start, int64_t step) {
    const Kernel scalar{refine_scalar, workspace_size_scalar};
    const float nan = std::numeric_limits<float>::quiet_NaN();
    bool intact = true;
    Options options = problem.options();
    Batch batch = batch_of(problem).part(critic, row, 1);
    const Outcome whole = run(critic, options, batch, scalar, nan, intact);
    q = whole.q[0];
    q_initial = whole.q_initial[0];
    options.steps = static_cast<int>(step);
    options.select = Select::last;
    batch.actions += start * critic.action_dim;
    batch.starts = 1;
    const Outcome candidate = run(critic, options, batch, scalar, nan, intact);
    action.assign(candidate.actions.data(), candidate.actions.data() + critic.action_dim);
  }

  double q, q_initial;        // of the row
  std::vector<float> action;  // the candidate
};

struct Difference {
  Difference(const float* action, double q, double q_initial, const Expected& expected)
      : q(std::max(std::abs(q - expected.q), std::abs(q_initial - expected.q_initial))) {
    for (size_t k = 0; k < expected.action.size(); ++k)
      this->action =
          std::max(this->action, std::abs(static_cast<double>(action[k]) - expected.action[k]));
  }

  bool within(const Difference& tolerance) const {
    return action <= tolerance.action && q <= tolerance.q;
  }

  double action = 0.0;
  double q;
};

std::string not_as_scalar(const Problem& problem, const Critic& critic, const Outcome& outcome,
                          Coverage& coverage) {
  std::vector<std::unique_ptr<Shaken>> shakes;
  for (int64_t row = 0; row < problem.settings.rows; ++row) {
    ++coverage.compared;
    const int64_t start = outcome.start[row], step = outcome.best_step[row];
    const Expected expected(problem, critic, row, start, step);
    const Difference off(outcome.actions.data() + row * critic.action_dim, outcome.q[row],
                         outcome.q_initial[row], expected);
    Difference tolerance = off;
    tolerance.action = 1e-5;
    tolerance.q = 1e-5 * (1.0 + std::abs(expected.q));
    if (off.within(tolerance)) continue;

    ++coverage.shaken;
    if (shakes.empty())
      for (uint64_t seed = 0; seed < 48; ++seed)
        shakes.push_back(std::make_unique<Shaken>(problem, seed));
    for (const std::unique_ptr<Shaken>& shake : shakes) {
      const Expected other(shake->problem, shake->critic.view(), row, start, step);
      const Difference by(other.action.data(), other.q, other.q_initial, expected);
      tolerance.action = std::max(tolerance.action, 4.0 * by.action);
      tolerance.q = std::max(tolerance.q, 4.0 * by.q);
    }
    if (off.within(tolerance)) continue;
    std::ostringstream text;
    text.precision(9);
    text << "row " << row << ": not as the scalar kernel: candidate " << step << " of start "
         << start << " off by " << off.action << " (may be " << tolerance.action << "), Q by "
         << off.q << " (may be " << tolerance.q << "); Q " << outcome.q[row] << ", expected "
         << expected.q << "; q_initial " << outcome.q_initial[row] << ", expected "
         << expected.q_initial;
    return text.str();
  }
  return "";
}

}  // namespace

std::string wrong_with(const Problem& problem, const Critic& critic, const Kernel& kernel,
                       bool compare, Coverage& coverage) {
  const Options options = problem.options();
  const Batch batch = batch_of(problem);
  bool intact = true;
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const Outcome outcome = run(critic, options, batch, kernel, nan, intact);
  if (!intact) return "it wrote beyond its scratch memory";
  std::string wrong = outcome.not_written_exactly();
  if (!wrong.empty()) return wrong;
  wrong = run(critic, options, batch, kernel, 1e30f, intact).not_as_in(outcome, 0);
  if (!wrong.empty()) return "with other scratch memory: " + wrong;
  for (int64_t row = 0; row < batch.rows; ++row) {
    const Batch alone = batch.part(critic, row, 1);
    wrong = run(critic, options, alone, kernel, 1e30f, intact).not_as_in(outcome, row);
    if (!wrong.empty()) return "row " + std::to_string(row) + " on its own: " + wrong;
    wrong = out_of_range(problem, critic, options, outcome, row);
    if (!wrong.empty()) return "row " + std::to_string(row) + ": " + wrong;
    coverage.flips += outcome.flips[row];
    coverage.dense_steps += outcome.dense_steps[row];
  }
  return compare ? not_as_scalar(problem, critic, outcome, coverage) : "";
}

}  // namespace dtag::test
