#include "acting.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <stdexcept>

#include "arena.h"
#include "kernels.h"

namespace dtag {
namespace {

// Tokens that go through the blocks together. With fewer, weights are read more often; with more,
// less of what lies between the layers stays in the second-level cache.
constexpr int64_t tokens_together = 112;

// Token 1 of a step is the last before its action, in either order.
constexpr int action_read_at = 1;
constexpr int action_order = 2;

using Clock = std::chrono::steady_clock;
double seconds(Clock::time_point from, Clock::time_point to) {
  return std::chrono::duration<double>(to - from).count();
}

float* thread_workspace(size_t floats) {
  thread_local size_t capacity = 0;
  thread_local std::unique_ptr<AlignedFloats> memory;
  if (floats > capacity) {
    memory = std::make_unique<AlignedFloats>(floats);
    std::fill_n(memory->data(), floats, 0.0f);
    capacity = floats;
  }
  return memory->data();
}

AlignedFloats zeros(size_t count) {
  AlignedFloats made(count);
  std::fill_n(made.data(), count, 0.0f);
  return made;
}

}  // namespace

Acting::Acting(std::shared_ptr<const PackedTransformer> model, int envs)
    : model_(std::move(model)), episodes_(static_cast<size_t>(envs)) {
  if (kernels().transformer.advance == nullptr)
    throw std::invalid_argument("the " + std::string(kernels().isa) +
                                " kernels have none for acting");
  lay_out();
  for (int env = 0; env < envs; ++env) reset(env);
}

void Acting::lay_out() {
  const Transformer& m = model();
  const auto count = episodes_.size();
  const auto cells = static_cast<size_t>(m.columns()) * m.attention_span();
  const auto carve = [&](float* block) {
    Arena arena(block);
    for (Episode& episode : episodes_) {
      episode.inputs = arena.take(static_cast<size_t>(m.rows()) * m.input_span());
      episode.embedded = arena.take(static_cast<size_t>(m.rows()) * m.row_span());
      episode.keys = arena.take(m.block_count * cells);
      episode.values = arena.take(m.block_count * cells);
      episode.numbers = arena.take(static_cast<size_t>(m.columns()));
    }
    return arena.used();
  };
  memory_ = zeros(carve(nullptr));
  carve(memory_.data());
  hidden_ = zeros(count * m.span());
  heads_ = zeros(count * in_panels(m.action_dim));
  tokens_.resize(count);
  raw_.resize(count * m.action_dim);
  chosen_.reserve(count);
}

void Acting::reset(int env) {
  const Transformer& m = model();
  Episode& episode = episodes_[env];
  episode.step = -1;
  episode.first = episode.ready = episode.entered = 0;
  episode.token = 0.0f;
  std::fill_n(episode.numbers, m.columns(), -1.0f);
  // Unseen is not enough: a NaN would come through a weight of zero.
  const size_t cells = m.block_count * static_cast<size_t>(m.columns()) * m.attention_span();
  std::fill_n(episode.keys, cells, 0.0f);
  std::fill_n(episode.values, cells, 0.0f);
}

std::unique_ptr<Acting> Acting::select(const std::vector<int>& rows) const {
  auto other = std::make_unique<Acting>(model_, static_cast<int>(rows.size()));
  const Transformer& m = model();
  const size_t size = other->episodes_.size() == 0
                          ? 0
                          : static_cast<size_t>(other->episodes_[0].numbers -
                                                other->episodes_[0].inputs) +
                                padded(m.columns());
  for (size_t i = 0; i < rows.size(); ++i) {
    const Episode& from = episodes_[rows[i]];
    Episode& to = other->episodes_[i];
    std::copy_n(from.inputs, size, to.inputs);
    to.step = from.step;
    to.first = from.first;
    to.ready = from.ready;
    to.entered = from.entered;
    to.token = from.token;
  }
  return other;
}

void Acting::replace_model(std::shared_ptr<const PackedTransformer> model) {
  model_ = std::move(model);
  for (Episode& episode : episodes_) {
    if (model_->view().sliding)
      episode.ready = std::min(episode.ready, episode.entered);
    else
      episode.ready = episode.entered = episode.first;
  }
}

float* Acting::inputs_of(const Episode& episode, int64_t number) const {
  return episode.inputs + static_cast<size_t>(number % model().rows()) * model().input_span();
}

void Acting::write_input(Episode& episode, int order, const float* values, int count) {
  const int64_t number = tokens_per_step * episode.step + order;
  std::copy_n(values, count, inputs_of(episode, number));
  episode.ready = std::min(episode.ready, number);
  episode.entered = std::min(episode.entered, number);
}

void Acting::begin_step(const float* observations) {
  const Transformer& m = model();
  if (m.sliding) {  // take in what was written and no prediction has asked for
    chosen_.clear();
    for (Episode& episode : episodes_)
      if (episode.step >= 0 && tokens_to_enter(episode, action_read_at) > 0)
        chosen_.push_back(&episode);
    advance_chosen(action_read_at);
  }
  for (int env = 0; env < envs(); ++env) {
    Episode& episode = episodes_[env];
    ++episode.step;
    if (!m.sliding) {
      episode.first = tokens_per_step * std::max<int64_t>(0, episode.step - m.window + 1);
      episode.entered = episode.first;
    }
    const float none = 0.0f;
    write_input(episode, m.predicts_returns ? 0 : 1,
                observations + static_cast<size_t>(env) * m.observation_dim, m.observation_dim);
    write_input(episode, m.predicts_returns ? 1 : 0, &none, 1);
  }
}

void Acting::write_tokens(const float* tokens) {
  for (int env = 0; env < envs(); ++env) {
    episodes_[env].token = tokens[env];
    write_input(episodes_[env], model().predicts_returns ? 1 : 0, tokens + env, 1);
  }
}

void Acting::write_actions(const float* actions) {
  const int n = model().action_dim;
  for (int env = 0; env < envs(); ++env)
    write_input(episodes_[env], action_order, actions + static_cast<size_t>(env) * n, n);
}

void Acting::advance(int last) {
  chosen_.clear();
  for (Episode& episode : episodes_) {
    // One that is asked for again is computed again.
    episode.entered = std::min(episode.entered, tokens_per_step * episode.step + last);
    chosen_.push_back(&episode);
  }
  advance_chosen(last);
}

void Acting::advance_chosen(int last) {
  const TransformerKernel& kernel = kernels().transformer;
  size_t begin = 0;
  while (begin < chosen_.size()) {
    int64_t tokens = 0;
    size_t stop = begin;
    while (stop < chosen_.size()) {
      const int64_t more = tokens_to_enter(*chosen_[stop], last);
      if (stop > begin && tokens + more > tokens_together) break;
      tokens += more;
      ++stop;
    }
    const Advance job{chosen_.data() + begin, static_cast<int>(stop - begin), last,
                      hidden_.data() + begin * model().span()};
    kernel.advance(model(), job, thread_workspace(kernel.workspace_size(model(), tokens)));
    begin = stop;
  }
}

void Acting::predict_returns(float* returns) {
  const Transformer& m = model();
  advance(0);
  const int stride = in_panels(m.action_dim);
  kernels().transformer.linear(m.predict_return, hidden_.data(), m.span(), envs(), heads_.data(),
                               stride);
  for (int env = 0; env < envs(); ++env)
    returns[env] = heads_.data()[static_cast<size_t>(env) * stride] * m.rtg_scale;
}

void Acting::predict_actions(float* actions) {
  const Transformer& m = model();
  advance(action_read_at);
  const int stride = in_panels(m.action_dim);
  kernels().transformer.linear(m.predict_action, hidden_.data(), m.span(), envs(), heads_.data(),
                               stride);
  for (int env = 0; env < envs(); ++env)
    for (int j = 0; j < m.action_dim; ++j) {
      const float low = m.action_low[j], high = m.action_high[j];
      actions[static_cast<size_t>(env) * m.action_dim + j] =
          (high + low) / 2.0f +
          (high - low) / 2.0f * std::tanh(heads_.data()[static_cast<size_t>(env) * stride + j]);
    }
}

void Acting::act(const ActOptions& options, const float* observations, const float* rewards,
                 float* actions) {
  const Clock::time_point begin = Clock::now();
  const Transformer& m = model();
  const auto count = episodes_.size();
  begin_step(observations);
  if (options.target_return) {
    for (size_t env = 0; env < count; ++env)
      tokens_[env] = episodes_[env].step == 0 ? *options.target_return
                                              : episodes_[env].token - rewards[env];
  } else {
    predict_returns(tokens_.data());
  }
  write_tokens(tokens_.data());
  float* const raw = raw_.data();
  predict_actions(raw);
  const Clock::time_point predicted = Clock::now();
  const size_t size = count * m.action_dim;
  if (options.critic == nullptr) {
    std::copy_n(raw, size, actions);
  } else {
    Report& r = report_;
    for (std::vector<float>* each : {&r.q, &r.q_initial, &r.distance}) each->resize(count);
    for (std::vector<int64_t>* each : {&r.best_step, &r.start, &r.flips, &r.dense_steps})
      each->resize(count);
    const Batch batch{static_cast<int64_t>(count), 1, observations, raw};
    Execution execution = options.execution;
    execution.algorithm = choose(*options.critic, *options.options, batch, execution.algorithm);
    r.algorithm = execution.algorithm;
    refine(*options.critic, *options.options, batch,
           {actions, r.q.data(), r.q_initial.data(), r.best_step.data(), r.start.data(),
            r.distance.data(), r.flips.data(), r.dense_steps.data()},
           execution);
  }
  for (size_t i = 0; i < size; ++i) {
    const int j = static_cast<int>(i % m.action_dim);
    // As torch.clamp: a NaN stays.
    if (actions[i] < m.action_low[j]) actions[i] = m.action_low[j];
    if (actions[i] > m.action_high[j]) actions[i] = m.action_high[j];
  }
  const Clock::time_point refined = Clock::now();
  write_actions(options.keep_refined ? actions : raw);
  report_.model_seconds = seconds(begin, predicted);
  report_.refinement_seconds = options.critic == nullptr ? 0.0 : seconds(predicted, refined);
}

}  // namespace dtag
