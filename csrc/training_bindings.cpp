#include "training_bindings.h"

#include <pybind11/stl.h>

#include <array>
#include <cmath>
#include <cstdint>
#include <stdexcept>
#include <vector>

#include "kernels.h"
#include "training.h"

namespace py = pybind11;

namespace dtag {
namespace {

const TrainingKernels& training_kernels() {
  if (kernels().training == nullptr)
    throw std::runtime_error(std::string("the instruction set '") + kernels().isa +
                             "' has no training kernels");
  return *kernels().training;
}

template <typename Value>
Value* at(uintptr_t address) {
  return reinterpret_cast<Value*>(address);
}

// Memory that grows when more is asked for, aligned to a cache line.
class Workspace64 {
 public:
  float* get(size_t floats) {
    constexpr size_t line = 64;
    if (memory_.size() < floats + line / sizeof(float))
      memory_ = std::vector<float>(floats + line / sizeof(float));
    const uintptr_t address = reinterpret_cast<uintptr_t>(memory_.data());
    return at<float>((address + line - 1) / line * line);
  }

 private:
  std::vector<float> memory_;
};

using Strided = std::array<int64_t, 4>;  // address, stride to the next product, those of Matrix

Matrix matrix(const Strided& of) {
  return {at<const float>(static_cast<uintptr_t>(of[0])), static_cast<ptrdiff_t>(of[2]),
          static_cast<ptrdiff_t>(of[3])};
}

// bias: address, stride to the next product; out: address, strides to the next and between rows.
void run_multiply(int count, int rows, int columns, int inner, const Strided& a, const Strided& b,
                  const std::array<int64_t, 2>& bias, const std::array<int64_t, 3>& out,
                  int threads) {
  thread_local Workspace64 workspace;
  const TrainingKernels& with = training_kernels();
  const auto stride = [](int64_t of) { return static_cast<ptrdiff_t>(of); };
  const Product product{rows,
                        columns,
                        inner,
                        matrix(a),
                        matrix(b),
                        at<const float>(static_cast<uintptr_t>(bias[0])),
                        at<float>(static_cast<uintptr_t>(out[0])),
                        stride(out[2]),
                        count,
                        stride(a[1]),
                        stride(b[1]),
                        stride(bias[1]),
                        stride(out[1])};
  const py::gil_scoped_release released;
  with.multiply(product, workspace.get(with.multiply_workspace(product)), threads);
}

// The addresses of a parameter [E, ...]: value, exp_avg, exp_avg_sq, and the target's or 0.
using Tensors = std::vector<std::array<uintptr_t, 4>>;

// The layers of a network with these widths; tensors are weight, bias, weight, bias, ...
std::vector<TrainedLayer> layers_of(int inputs, const std::vector<int>& hidden,
                                    const Tensors& tensors) {
  std::vector<int> widths{inputs};
  widths.insert(widths.end(), hidden.begin(), hidden.end());
  widths.push_back(1);
  if (hidden.empty() || tensors.size() != 2 * (widths.size() - 1))
    throw py::value_error("tensors: expected a weight and a bias for each layer");
  const auto trained = [](const std::array<uintptr_t, 4>& a) {
    return TrainedTensor{at<float>(a[0]), at<float>(a[1]), at<float>(a[2]), at<float>(a[3])};
  };
  std::vector<TrainedLayer> layers;
  for (size_t l = 0; l + 1 < widths.size(); ++l)
    layers.push_back(
        {widths[l], widths[l + 1], trained(tensors[2 * l]), trained(tensors[2 * l + 1])});
  return layers;
}

// An IQL critic in training: settings, where its tensors are, and the kernel's memory.
class IqlTrainer {
 public:
  IqlTrainer(int observation_dim, int action_dim, int batch, const std::vector<int>& hidden,
             int heads, float negative_slope, float discount, float expectile, float polyak,
             bool joint, float q_loss_factor, uintptr_t mean, uintptr_t std, const Tensors& q,
             const Tensors& value)
      : q_(layers_of(observation_dim + action_dim, hidden, q)),
        value_(layers_of(observation_dim, hidden, value)),
        iql_{observation_dim,
             action_dim,
             batch,
             negative_slope,
             discount,
             expectile,
             polyak,
             joint,
             q_loss_factor,
             at<const float>(mean),
             at<const float>(std),
             {heads, static_cast<int>(q_.size()), q_.data()},
             {1, static_cast<int>(value_.size()), value_.data()}} {}
  IqlTrainer(const IqlTrainer&) = delete;

  void step(uintptr_t rows, uintptr_t index, const std::array<double, 5>& adam, uintptr_t losses,
            int threads) {
    const TrainingKernels& with = training_kernels();
    const IqlBatch batch{
        at<const float>(rows), at<const int64_t>(index),
        {static_cast<float>(adam[0]), static_cast<float>(adam[1]), static_cast<float>(adam[4]),
         adam[2], adam[3]},
        at<float>(losses)};
    const py::gil_scoped_release released;
    with.iql_step(iql_, batch, workspace_.get(with.iql_workspace(iql_)), threads);
  }

 private:
  std::vector<TrainedLayer> q_, value_;
  Iql iql_;
  Workspace64 workspace_;
};

void run_gelu(uintptr_t x, uintptr_t value, uintptr_t slope, int64_t elements, int threads) {
  const TrainingKernels& with = training_kernels();
  const py::gil_scoped_release released;
  with.gelu(at<const float>(x), at<float>(value), at<float>(slope), elements, threads);
}

Dropout dropout_of(uint64_t seed, double probability) {
  return {seed, static_cast<uint32_t>(probability * 4294967296.0),
          static_cast<float>(1.0 / (1.0 - probability))};
}

void run_dropout(uintptr_t x, uintptr_t out, int64_t elements, uint64_t seed, double probability,
                 int threads) {
  const TrainingKernels& with = training_kernels();
  const Dropout how = dropout_of(seed, probability);
  const py::gil_scoped_release released;
  with.dropout(at<const float>(x), at<float>(out), elements, how, threads);
}

using HeadStrides = std::array<int64_t, 4>;  // address, and the strides of Heads or of a mask

Heads heads_at(const HeadStrides& of) {
  return {at<float>(static_cast<uintptr_t>(of[0])), static_cast<ptrdiff_t>(of[1]),
          static_cast<ptrdiff_t>(of[2]), static_cast<ptrdiff_t>(of[3])};
}

// tensors: query, key, value, out; for the backward pass by_out, by_query, by_key, by_value besides.
void run_attend(const std::array<int, 4>& sizes, const std::vector<HeadStrides>& tensors,
                uintptr_t probabilities, const HeadStrides& mask, uint64_t seed,
                double probability, int threads) {
  const TrainingKernels& with = training_kernels();
  if (tensors.size() != 4 && tensors.size() != 8)
    throw py::value_error("tensors: expected 4, or 8 for the backward pass");
  if (sizes[2] > most_length || sizes[3] % 16 != 0)
    throw py::value_error("sizes: expected a shorter sequence, and a width in sixteens");
  Heads heads[8] = {};
  for (size_t t = 0; t < tensors.size(); ++t) heads[t] = heads_at(tensors[t]);
  const Attention attention{
      sizes[0], sizes[1], sizes[2], sizes[3], 1.0f / std::sqrt(static_cast<float>(sizes[3])),
      heads[0], heads[1], heads[2], heads[3], heads[4],
      heads[5], heads[6], heads[7], at<float>(probabilities),
      at<const uint8_t>(static_cast<uintptr_t>(mask[0])), static_cast<ptrdiff_t>(mask[1]),
      static_cast<ptrdiff_t>(mask[2]), static_cast<ptrdiff_t>(mask[3]),
      dropout_of(seed, probability)};
  const py::gil_scoped_release released;
  with.attend(attention, tensors.size() == 8, threads);
}

// tensors: parameter, gradient, exp_avg, exp_avg_sq, number of elements; numbers: as in Lamb.
void run_lamb(const std::vector<std::array<uintptr_t, 5>>& tensors,
              const std::array<double, 8>& numbers, int threads) {
  const TrainingKernels& with = training_kernels();
  std::vector<LambTensor> list;
  for (const auto& a : tensors)
    list.push_back({at<float>(a[0]), at<const float>(a[1]), at<float>(a[2]), at<float>(a[3]),
                    static_cast<int64_t>(a[4])});
  const auto number = [&](int i) { return static_cast<float>(numbers[i]); };
  const Lamb lamb{number(0), number(1), number(2),  number(5),
                  number(6), number(7), numbers[3], numbers[4]};
  const int count = static_cast<int>(list.size());
  std::vector<double> sums(static_cast<size_t>(with.lamb_sums(list.data(), count)));
  const py::gil_scoped_release released;
  with.lamb_step(list.data(), count, lamb, sums.data(), threads);
}

}  // namespace

void bind_training(py::module_& module) {
  module.def("can_train", [] { return kernels().training != nullptr; });
  module.def("multiply", &run_multiply, py::arg("count"), py::arg("rows"), py::arg("columns"),
             py::arg("inner"), py::arg("a"), py::arg("b"), py::arg("bias"), py::arg("out"),
             py::arg("threads"));
  module.def("gelu", &run_gelu, py::arg("x"), py::arg("value"), py::arg("slope"),
             py::arg("elements"), py::arg("threads"));
  module.def("dropout", &run_dropout, py::arg("x"), py::arg("out"), py::arg("elements"),
             py::arg("seed"), py::arg("probability"), py::arg("threads"));
  module.def("attend", &run_attend, py::arg("sizes"), py::arg("tensors"),
             py::arg("probabilities"), py::arg("mask"), py::arg("seed"), py::arg("probability"),
             py::arg("threads"));
  module.def("lamb_step", &run_lamb, py::arg("tensors"), py::arg("numbers"), py::arg("threads"));
  py::class_<IqlTrainer>(module, "IqlTrainer")
      .def(py::init<int, int, int, const std::vector<int>&, int, float, float, float, float, bool,
                    float, uintptr_t, uintptr_t, const Tensors&, const Tensors&>(),
           py::kw_only(), py::arg("observation_dim"), py::arg("action_dim"), py::arg("batch"),
           py::arg("hidden"), py::arg("heads"), py::arg("negative_slope"), py::arg("discount"),
           py::arg("expectile"), py::arg("polyak"), py::arg("joint"), py::arg("q_loss_factor"),
           py::arg("mean"), py::arg("std"), py::arg("q"), py::arg("value"))
      .def("step", &IqlTrainer::step, py::arg("rows"), py::arg("index"), py::arg("adam"),
           py::arg("losses"), py::arg("threads"));
}

}  // namespace dtag
