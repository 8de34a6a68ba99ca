#include "thread_pool.h"

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

#if !defined(_WIN32)
#include <unistd.h>
#endif

namespace dtag {
namespace {

int process_id() {
#if defined(_WIN32)
  return 0;  // no fork there
#else
  return static_cast<int>(getpid());
#endif
}

class ThreadPool {
 public:
  int owner() const { return owner_; }

  // False, without a call, if another batch is under way.
  bool try_run(int helpers, Work work, const void* context) {
    const std::unique_lock<std::mutex> turn(turn_, std::try_to_lock);
    if (!turn.owns_lock()) return false;
    start(helpers);
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      work_ = work;
      context_ = context;
      wanted_ = helpers;
    }
    for (int i = 0; i < helpers; ++i) wake_.notify_one();
    work(context);
    // Who has not come yet need not come any more.
    std::unique_lock<std::mutex> lock(mutex_);
    wanted_ = 0;
    done_.wait(lock, [this] { return helping_ == 0; });
    return true;
  }

  void stop() {
    const std::lock_guard<std::mutex> turn(turn_);
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      stopping_ = true;
    }
    wake_.notify_all();
    for (std::thread& thread : threads_) thread.join();
    threads_.clear();
    stopping_ = false;
  }

 private:
  void start(int helpers) {
    try {
      while (threads_.size() < static_cast<size_t>(helpers))
        threads_.emplace_back([this] { help(); });
    } catch (const std::exception&) {  // the system gives no more: those that are there will do
    }
  }

  void help() {
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      wake_.wait(lock, [this] { return wanted_ > 0 || stopping_; });
      if (stopping_) return;
      --wanted_;
      ++helping_;
      const Work work = work_;
      const void* const context = context_;
      lock.unlock();
      work(context);
      lock.lock();
      if (--helping_ == 0) done_.notify_one();
    }
  }

  const int owner_ = process_id();
  std::mutex turn_;  // held by the caller whose batch is under way
  std::vector<std::thread> threads_;

  std::mutex mutex_;  // of all below
  std::condition_variable wake_, done_;
  Work work_ = nullptr;
  const void* context_ = nullptr;
  int wanted_ = 0;   // helpers that may still join
  int helping_ = 0;  // helpers inside work()
  bool stopping_ = false;
};

// Never destroyed: a thread may be inside while the process exits. After a fork the child leaves
// its copy alone, whose threads do not exist and whose locks may be held, and makes another.
std::atomic<ThreadPool*> current{nullptr};

ThreadPool& pool() {
  ThreadPool* found = current.load(std::memory_order_acquire);
  if (found != nullptr && found->owner() == process_id()) return *found;
  auto* const fresh = new ThreadPool;
  if (current.compare_exchange_strong(found, fresh, std::memory_order_acq_rel)) return *fresh;
  delete fresh;
  return *found;
}

#if !defined(_WIN32)  // which has ended the threads by the time a module is left
const struct AtExit {
  ~AtExit() {
    ThreadPool* const found = current.load(std::memory_order_acquire);
    if (found != nullptr && found->owner() == process_id()) found->stop();
  }
} at_exit;
#endif

}  // namespace

void run_with_help(int threads, Work work, const void* context) {
  if (threads < 2 || !pool().try_run(threads - 1, work, context)) work(context);
}

}  // namespace dtag
