// The threads of a kernel as fibers, all in one thread of the host: one goes on until it has to wait for others,
// then another, in an order that is drawn by lot.
//
// ThreadSanitizer sees each as a thread of its own, and knows of no order between them but what release() and
// acquire() say. So it finds two that reach for the same memory where no barrier lies in between, whichever came first
// this time: what on the device compute-sanitizer's racecheck looks for.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <exception>
#include <functional>
#include <memory>
#include <random>
#include <stdexcept>
#include <utility>
#include <vector>

#if defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define __SANITIZE_THREAD__ 1
#endif
#endif
#if defined(__SANITIZE_THREAD__)
#include <sanitizer/tsan_interface.h>
extern "C" {
void AnnotateIgnoreReadsBegin(const char* file, int line);
void AnnotateIgnoreReadsEnd(const char* file, int line);
void AnnotateIgnoreWritesBegin(const char* file, int line);
void AnnotateIgnoreWritesEnd(const char* file, int line);
}
#define DTAG_TSAN(...) __VA_ARGS__
#else
#define DTAG_TSAN(...)
#endif

namespace dtag::cuda {

// All that was done before a release is done for who acquires after it.
inline void release([[maybe_unused]] void* order) { DTAG_TSAN(__tsan_release(order)); }
inline void acquire([[maybe_unused]] void* order) { DTAG_TSAN(__tsan_acquire(order)); }

// While there is one, the sanitizer does not look: at what fibers are made of.
class Unseen {
 public:
  Unseen() {
    DTAG_TSAN(AnnotateIgnoreReadsBegin(__FILE__, __LINE__); AnnotateIgnoreWritesBegin(__FILE__, __LINE__));
  }
  ~Unseen() { DTAG_TSAN(AnnotateIgnoreWritesEnd(__FILE__, __LINE__); AnnotateIgnoreReadsEnd(__FILE__, __LINE__)); }
  Unseen(const Unseen&) = delete;
  Unseen& operator=(const Unseen&) = delete;
};

class Fibers {
 public:
  explicit Fibers(uint32_t seed) : lots_(seed) {}

  // Before they run, or by one of them.
  void add(std::function<void()> body) {
    const Unseen unseen;
    fibers_.push_back(std::make_unique<Fiber>(std::move(body)));
    Fiber& fiber = *fibers_.back();
    DTAG_TSAN(fiber.as_seen = __tsan_create_fiber(0));
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = stack_bytes;
    makecontext(&fiber.context, &Fibers::begin, 0);
    order_.push_back(&fiber);
  }

  // Until all have ended; throws what the first one threw, of which the others do not hear.
  void run() {
    {
      const Unseen unseen;
      running_ = this;
      DTAG_TSAN(host_.as_seen = __tsan_get_current_fiber());
      now_ = &host_;
    }
    release(this);
    if (!order_.empty()) go_to(*next());
    acquire(&ended_);
    DTAG_TSAN(for (const auto& fiber : fibers_) __tsan_destroy_fiber(fiber->as_seen));
    if (error_) std::rethrow_exception(error_);
  }

  // Those that run.
  static Fibers& running() {
    const Unseen unseen;
    return *running_;
  }

  // Let others go on until ready().
  template <typename Ready>
  void wait_until(Ready ready) {
    const Unseen unseen;
    if (ready()) return;
    now_->ready = ready;
    Fiber* const other = next();
    if (other == nullptr) throw std::logic_error("threads wait for each other for ever");
    go_to(*other);
  }

 private:
  static constexpr size_t stack_bytes = 256 << 10;

  struct Fiber {
    explicit Fiber(std::function<void()> f = {})
        : body(std::move(f)), stack(body ? new char[stack_bytes] : nullptr) {}
    std::function<void()> body;
    std::unique_ptr<char[]> stack;
    std::function<bool()> ready;  // empty: it is
    void* as_seen = nullptr;      // by the sanitizer
    ucontext_t context;
  };

  static void begin() {
    Fibers& of = running();
    acquire(&of);
    of.do_all();
    Fiber& other = of.after_the_end();
    release(&of.ended_);
    of.go_to(other);
  }
  void do_all() {
    try {
      now_->body();
    } catch (...) {
      const Unseen unseen;
      if (!error_) error_ = std::current_exception();
    }
  }
  Fiber& after_the_end() {
    const Unseen unseen;
    order_.erase(std::find(order_.begin(), order_.end(), now_));
    if (error_ || order_.empty()) return host_;
    if (Fiber* const other = next()) return *other;
    error_ = std::make_exception_ptr(std::logic_error("threads wait for others, which have ended"));
    return host_;
  }

  // One that can go on, or null.
  Fiber* next() {
    for (size_t tried = 0; tried < order_.size(); ++tried) {
      if (at_ >= order_.size()) {
        at_ = 0;
        std::shuffle(order_.begin(), order_.end(), lots_);
        tried = 0;
      }
      Fiber* const fiber = order_[at_++];
      if (fiber->ready && !fiber->ready()) continue;
      fiber->ready = {};
      return fiber;
    }
    return nullptr;
  }

  // Nothing of it is seen: a fiber that has ended is not to touch its stack.
  __attribute__((no_sanitize_thread)) void go_to(Fiber& other) {
    Fiber* const from = now_;
    if (from == &other) return;
    now_ = &other;
    DTAG_TSAN(__tsan_switch_to_fiber(other.as_seen, __tsan_switch_to_fiber_no_sync));
    swapcontext(&from->context, &other.context);
  }

  static inline thread_local Fibers* running_ = nullptr;
  std::mt19937 lots_;
  std::vector<std::unique_ptr<Fiber>> fibers_;
  std::vector<Fiber*> order_;  // of those that have not ended
  size_t at_ = 0;
  Fiber host_;
  Fiber* now_ = nullptr;
  std::exception_ptr error_;
  char ended_ = 0;
};

// Where as many threads wait for each other as it is made for, time and again. orders: whether what was written
// before is seen after.
template <bool orders>
class Barrier {
 public:
  explicit Barrier(int count) : count_(count) {}

  // Whether any of them says so.
  bool wait(bool says = false) {
    const int phase = arrive(says);
    await(phase);
    const Unseen unseen;
    return found_[phase % 2];
  }

  // The same in two: who arrived may do other things before it waits, or never.
  int arrive(bool says = false) {
    const Unseen unseen;
    const int phase = phase_;
    if (orders) release(order_ + phase % 2);
    finds_ = finds_ || says;
    if (++arrived_ == count_) {
      found_[phase % 2] = std::exchange(finds_, false);
      arrived_ = 0;
      ++phase_;
    }
    return phase;
  }
  void await(int phase) {
    Fibers::running().wait_until([this, phase] { return phase_ != phase; });
    if (orders) acquire(order_ + phase % 2);
  }

 private:
  int count_, arrived_ = 0, phase_ = 0;
  bool finds_ = false, found_[2] = {};
  char order_[2] = {};
};

// Counts bytes that come, as an mbarrier does. A phase is over when as many came as are expected of it.
class Mark {
 public:
  // Before anything else.
  void begin() { begun_ = true; }
  void expect(int bytes) {
    look();
    const Unseen unseen;
    if (expects_) throw std::logic_error("what is expected of a phase is said twice");
    expects_ = true;
    count(bytes);
  }
  void complete(int bytes) {
    look();
    const Unseen unseen;
    release(order_ + phase_ % 2);
    count(-bytes);
  }
  // parity: of the phase.
  void wait(int parity) {
    look();
    Fibers::running().wait_until([this, parity] { return phase_ % 2 != parity; });
    acquire(order_ + parity);
  }

 private:
  void look() const {
    if (!begun_) throw std::logic_error("a mark that has not begun");
  }
  void count(int bytes) {
    missing_ += bytes;
    if (!expects_ || missing_ != 0) return;
    expects_ = false;
    ++phase_;
  }

  int missing_ = 0, phase_ = 0;
  bool begun_ = false, expects_ = false;
  char order_[2] = {};
};

// By a thread of its own, as the engine that copies does not wait for others.
inline void copy_in_bulk(void* to, const void* from, int bytes, Mark* mark) {
  Fibers::running().add([=] {
    std::memcpy(to, from, static_cast<size_t>(bytes));
    mark->complete(bytes);
  });
}

// Numbers of a warp's lanes, from each to all. As with the device's exchanges that orders nothing else.
class Warp {
 public:
  template <typename Number, int count>
  struct OfLanes {
    Number of[32][count];
  };

  template <typename Number, int count>
  OfLanes<Number, count> share(int lane, const Number (&own)[count]) {
    static_assert(sizeof(own) <= sizeof(numbers_[0][0]), "there is room for them");
    const Unseen unseen;
    const int phase = arrivals_.arrive();
    std::copy(own, own + count, reinterpret_cast<Number*>(numbers_[phase % 2][lane]));
    arrivals_.await(phase);
    OfLanes<Number, count> all;
    for (int i = 0; i < 32; ++i) {
      const Number* const from = reinterpret_cast<const Number*>(numbers_[phase % 2][i]);
      std::copy(from, from + count, all.of[i]);
    }
    return all;
  }
  void sync() { sync_.wait(); }

 private:
  Barrier<false> arrivals_{32};
  Barrier<true> sync_{32};
  uint64_t numbers_[2][32][20];
};

}  // namespace dtag::cuda
