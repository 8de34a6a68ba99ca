// Critics of random weights as kernels of csrc/cuda take them, and batches for them.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <random>
#include <stdexcept>
#include <type_traits>
#include <vector>

#include "dense_kernel.h"
#include "half.h"
#include "job.h"
#include "maps_layout.h"
#include "step.h"
#include "tile_words.h"

namespace dtag::cuda {

struct Sizes {
  int observation_dim, action_dim, heads, units, hidden_layers;
  float negative_slope = 0.0f;
};

class Packed {
 public:
  Packed(const Sizes& sizes, Precision precision, uint32_t seed) : lots_(seed) {
    PackedCritic& to = critic;
    to.observation_dim = sizes.observation_dim;
    to.action_dim = sizes.action_dim;
    to.heads = sizes.heads;
    to.hidden_layers = sizes.hidden_layers;
    to.negative_slope = sizes.negative_slope;
    to.first_units = to.top_units = sizes.units;
    to.precision = precision;
    if (const char* const reason = lay_out(sizes.action_dim, sizes.heads, sizes.units, precision, &to.layout))
      throw std::logic_error(reason);
    const int width = to.layout.width, actions = to.layout.actions, rows = observation_rows(to);
    const auto is_unit = [&](int i) { return i % width < sizes.units; };
    to.mean = numbers(sizes.observation_dim, 0.1f);
    to.std = positive(sizes.observation_dim);
    to.observation_weights = by_groups(rows, sizes.observation_dim);
    to.action_weights = by_groups(actions, sizes.action_dim);
    to.first_bias = numbers(sizes.heads * width, 0.1f, is_unit);
    to.output = numbers(sizes.heads * width, 0.3f, is_unit);
    to.output_bias = numbers(sizes.heads, 0.1f);
    whole_.push_back({1});
    to.finite = whole_.back().data();
    if (sizes.hidden_layers == 1) return;
    to.second_bias = numbers(sizes.heads * width, 0.1f, is_unit);
    if (precision == Precision::bf16)
      pack_second<uint16_t>([](float x) { return static_cast<uint16_t>(bfloat16_of(x)); });
    else
      pack_second<float>([](float x) { return x; });
    if (precision == Precision::tf32x3) pack_for_maps();
    if (fits_tiles(to)) pack_for_tiles();
  }

  PackedCritic critic;

 private:
  float lot(float size) { return std::normal_distribution<float>(0.0f, size)(lots_); }

  template <typename Is>
  const float* numbers(int count, float size, Is is) {
    floats_.emplace_back(count);
    for (int i = 0; i < count; ++i) floats_.back()[static_cast<size_t>(i)] = is(i) ? lot(size) : 0.0f;
    return floats_.back().data();
  }
  const float* numbers(int count, float size) {
    return numbers(count, size, [](int) { return true; });
  }
  const float* positive(int count) {
    floats_.emplace_back(count);
    for (float& x : floats_.back()) x = 1.0f + std::fabs(lot(0.3f));
    return floats_.back().data();
  }
  const void* halves(int count, float size) {
    words_.emplace_back(count);
    for (uint16_t& word : words_.back()) word = to_half(lot(size));
    return words_.back().data();
  }

  // [E, P / 64, rows, 64], of which the first `real` rows are not 0.
  const float* by_groups(int rows, int real) {
    const int width = critic.layout.width;
    return numbers(critic.heads * width * rows, 0.3f, [=](int i) {
      const int unit = i / (rows * group_units) % (width / group_units) * group_units + i % group_units;
      return i / group_units % rows < real && unit < critic.first_units;
    });
  }

  template <typename Weight, typename Of>
  void pack_second(Of of) {
    const auto heads = static_cast<size_t>(critic.heads), width = static_cast<size_t>(critic.layout.width);
    const auto units = static_cast<size_t>(critic.top_units);
    std::vector<Weight> weight(heads * units * width), transposed(heads * width * width), sliced(transposed.size());
    for (size_t e = 0; e < heads; ++e)
      for (size_t j = 0; j < units; ++j)
        for (size_t i = 0; i < units; ++i) {
          const Weight x = of(lot(0.1f));
          weight[(e * units + j) * width + i] = x;
          transposed[(e * width + i) * width + j] = x;
          sliced[((e * width / 32 + j / 32) * width + i) * 32 + j % 32] = x;
        }
    auto& kept = kept_of<Weight>();
    const auto keep = [&](std::vector<Weight>& of) {
      kept.push_back(std::move(of));
      return kept.back().data();
    };
    critic.weight = keep(weight);
    critic.transposed = keep(transposed);
    critic.sliced = keep(sliced);
  }
  template <typename Weight>
  auto& kept_of() {
    if constexpr (std::is_same_v<Weight, float>) return floats_;
    else return words_;
  }

  // Whatever numbers there are: not those of the other arrays.
  void pack_for_maps() {
    const int all = critic.heads * critic.layout.width, slots = slots_of_row(critic.layout.actions);
    critic.halves = halves(all * critic.layout.width * 2, 0.1f);
    critic.terms = halves(all / 16 * slots * 8 * 4 * 8, 0.3f);
    critic.unscale = numbers(critic.heads * slots * 8, 1.0f);
  }
  void pack_for_tiles() {
    constexpr int units = TileLayout::units, first_numbers = TileLayout::number_bytes / 4;
    words_.emplace_back(critic.heads * units * units);
    for (uint16_t& word : words_.back()) word = static_cast<uint16_t>(bfloat16_of(lot(0.1f)));
    critic.tile_weights = words_.back().data();
    critic.tile_observation = numbers(critic.heads * observation_rows(critic) * units, 0.3f);
    numbers(critic.heads * first_numbers, 0.1f);
    for (int e = 0; e < critic.heads; ++e) {
      char* const from = reinterpret_cast<char*>(floats_.back().data() + e * first_numbers);
      TileScales scales = {};
      for (float& scale : scales.of_action) scale = 1.0f;
      for (float& scale : scales.from_gradient) scale = 1.0f;
      scales.of_share = scales.from_q = 1.0f;
      std::memcpy(from + (TileLayout::scales - TileLayout::top), &scales, sizeof(scales));
      for (int i = 0; i < TileLayout::first_part; ++i) {  // two parts, of numbers of two bytes
        const uint16_t half = to_half(lot(0.2f));
        std::memcpy(from + (TileLayout::first - TileLayout::top) + 2 * i, &half, sizeof(half));
      }
    }
    critic.tile_numbers = floats_.back().data();
  }

  std::mt19937 lots_;
  std::vector<std::vector<float>> floats_;
  std::vector<std::vector<uint16_t>> words_;
  std::vector<std::vector<int32_t>> whole_;
};

// Rows for a critic, and what a kernel makes of them.
class Batch {
 public:
  Batch(const PackedCritic& critic, int rows, int starts, uint32_t seed)
      : job(critic),
        observations_(static_cast<size_t>(rows * critic.observation_dim)),
        actions_(static_cast<size_t>(rows * starts * critic.action_dim)),
        maps_(static_cast<size_t>(rows * floats_of_maps(critic))),
        floats_(static_cast<size_t>(rows * (critic.action_dim + 3))),
        whole_(static_cast<size_t>(rows) * 4) {
    std::mt19937 lots(seed);
    for (auto* const numbers : {&observations_, &actions_})
      for (float& x : *numbers) x = std::normal_distribution<float>(0.0f, 0.7f)(lots);
    job.rows = rows;
    job.starts = starts;
    job.observations = observations_.data();
    job.actions = actions_.data();
    for (int k = 0; k < most_actions; ++k) {
      job.settings.low[k] = k < critic.action_dim ? -1.0f : minus_infinity();
      job.settings.high[k] = -job.settings.low[k];
    }
    if (critic.precision == Precision::tf32x3) {
      job.maps = maps_.data();
      job.queue = &queue_;
    }
    float* const q = floats_.data() + rows * critic.action_dim;
    int64_t* const counts = whole_.data();
    job.result = {floats_.data(), q, q + rows, counts, counts + rows, q + 2 * rows, counts + 2 * rows,
                  counts + 3 * rows};
  }
  Batch(const Batch&) = delete;
  Batch& operator=(const Batch&) = delete;

  // As if nothing had been written yet.
  void poison() {
    for (auto* const numbers : {&maps_, &floats_}) std::memset(numbers->data(), 0xff, numbers->size() * sizeof(float));
    for (int64_t& number : whole_) number = -7;
    queue_ = 12345;
  }
  // Every bit of what was written.
  std::vector<unsigned char> written() const {
    std::vector<unsigned char> bytes;
    const auto add = [&](const auto& numbers) {
      const auto* const from = reinterpret_cast<const unsigned char*>(numbers.data());
      bytes.insert(bytes.end(), from, from + numbers.size() * sizeof(numbers[0]));
    };
    add(floats_);
    add(whole_);
    return bytes;
  }

  // Whether rows crossed from region to region, or were left to another kernel.
  bool crossed() const {
    for (int64_t row = 0; row < job.rows; ++row)
      if (job.result.flips[row] > 0) return true;
    return false;
  }
  bool marked() const {
    for (int64_t row = 0; row < job.rows; ++row)
      if (job.result.dense_steps[row] == marked_row) return true;
    return false;
  }

  Job job;

 private:
  std::vector<float> observations_, actions_, maps_, floats_;
  std::vector<int64_t> whole_;
  int32_t queue_ = 0;
};

}  // namespace dtag::cuda
