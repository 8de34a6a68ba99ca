#include "acting_bindings.h"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <memory>
#include <stdexcept>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "acting.h"
#include "packed_transformer.h"
#include "python_options.h"
#include "weights_version.h"

namespace dtag {
namespace {

using FloatArray = py::array_t<float, py::array::c_style>;
using Weights = std::map<std::string, FloatArray>;

std::shared_ptr<PackedTransformer> pack(const std::string& kind, int observation_dim,
                                        int action_dim, int window, int blocks, int width,
                                        int heads, int max_timestep, bool sliding, bool pre_norm,
                                        bool relu, float rtg_scale, const std::string& precision,
                                        const Weights& weights) {
  static const std::map<std::string, bool> kinds = {{"dt", false}, {"reinformer", true}};
  for (const int size : {observation_dim, action_dim, window, blocks, width, heads, max_timestep})
    if (size < 1) throw py::value_error("sizes: expected at least 1 of each");
  if (width % heads != 0) throw py::value_error("width: expected a multiple of heads");
  Transformer sizes;
  sizes.observation_dim = observation_dim;
  sizes.action_dim = action_dim;
  sizes.window = window;
  sizes.width = width;
  sizes.heads = heads;
  sizes.max_timestep = max_timestep;
  sizes.predicts_returns = word("kind", kind, kinds);
  sizes.sliding = sliding;
  sizes.pre_norm = pre_norm;
  sizes.relu = relu;
  sizes.rtg_scale = rtg_scale;
  const auto tensor = [&](const std::string& name, const std::vector<int>& shape) {
    const auto found = weights.find(name);
    if (found == weights.end()) throw py::value_error("weights: there is no " + name);
    const FloatArray& array = found->second;
    if (std::vector<int>(array.shape(), array.shape() + array.ndim()) != shape)
      throw py::value_error("weights: " + name + " is not of the expected shape");
    return array.data();
  };
  return std::make_shared<PackedTransformer>(sizes, blocks, tensor,
                                             precision_named(precision));
}

float* floats_at(uintptr_t address) { return reinterpret_cast<float*>(address); }

// Float32 numbers from an array of float32 or float64; false for anything else, or another shape.
// They stay in the array if they can.
bool read(const py::handle& object, const std::vector<py::ssize_t>& shape,
          std::vector<float>* copied, const float** numbers) {
  if (!py::isinstance<py::array>(object)) return false;
  const auto array = py::reinterpret_borrow<py::array>(object);
  if (array.ndim() != static_cast<py::ssize_t>(shape.size()) ||
      !std::equal(shape.begin(), shape.end(), array.shape()) ||
      (array.flags() & py::array::c_style) == 0)
    return false;
  const size_t count = static_cast<size_t>(array.size());
  if (py::isinstance<py::array_t<float>>(array)) {
    *numbers = static_cast<const float*>(array.data());
  } else if (py::isinstance<py::array_t<double>>(array)) {
    const auto* const wide = static_cast<const double*>(array.data());
    copied->assign(wide, wide + count);
    *numbers = copied->data();
  } else {
    return false;
  }
  return true;
}

bool all_finite(const float* x, size_t count) {
  for (size_t i = 0; i < count; ++i)
    if (!std::isfinite(x[i])) return false;
  return true;
}

// A whole action from Python's objects to Python's object.
class ActCall {
 public:
  ActCall(std::shared_ptr<Acting> acting, std::optional<float> target_return,
          const py::object& critic, const py::object& options, const std::string& algorithm,
          std::optional<int> threads, bool keep_refined, std::vector<py::object> versions)
      : acting_(std::move(acting)), owners_(py::make_tuple(critic, options)),
        versions_(std::move(versions)) {
    options_.target_return = target_return;
    options_.keep_refined = keep_refined;
    options_.execution = {algorithm_named(algorithm), threads.value_or(1)};
    if (!target_return && !acting_->model().predicts_returns)
      throw py::value_error("target_return: needed, the model predicts no returns");
    if (critic.is_none()) return;
    const auto& packed = critic.cast<const PackedCritic&>();
    const auto& owned = options.cast<const OwnedOptions&>();
    check_box(packed, owned);
    if (packed.view().observation_dim != acting_->model().observation_dim ||
        packed.view().action_dim != acting_->model().action_dim)
      throw py::value_error("critic: expected the model's observations and actions");
    options_.critic = &packed.view();
    options_.options = &owned.view();
  }

  // NotImplemented for whatever is not plain or not right, for the caller to see to.
  py::object operator()(const py::object& observations, const py::object& rewards) {
    const py::object other = py::reinterpret_borrow<py::object>(Py_NotImplemented);
    const Transformer& model = acting_->model();
    const int envs = acting_->envs();
    const bool single =
        envs == 1 && py::isinstance<py::array>(observations) &&
        py::reinterpret_borrow<py::array>(observations).ndim() == 1;
    const float* seen = nullptr;
    const std::vector<py::ssize_t> shape =
        single ? std::vector<py::ssize_t>{model.observation_dim}
               : std::vector<py::ssize_t>{envs, model.observation_dim};
    if (!read(observations, shape, &observations_, &seen) ||
        !all_finite(seen, static_cast<size_t>(envs) * model.observation_dim))
      return other;
    const float* received = nullptr;
    if (options_.target_return && !read_rewards(rewards, single, &received)) return other;
    for (int env = 0; env < envs; ++env)
      if (acting_->step(env) + 1 >= model.max_timestep) return other;
    for (const py::object& version : versions_)
      if (!version.cast<const WeightsVersion&>().is_current()) return other;

    py::array_t<float> actions(single ? std::vector<py::ssize_t>{model.action_dim}
                                      : std::vector<py::ssize_t>{envs, model.action_dim});
    float* const into = actions.mutable_data();
    {
      const py::gil_scoped_release others_run;
      acting_->act(options_, seen, received, into);
    }
    for (int env = 0; env < envs; ++env) {
      const float* const action = into + static_cast<size_t>(env) * model.action_dim;
      if (!all_finite(action, static_cast<size_t>(model.action_dim))) throw_not_finite(env, action);
    }
    return std::move(actions);
  }

 private:
  bool read_rewards(const py::object& rewards, bool single, const float** received) {
    const int envs = acting_->envs();
    bool begins = true;
    for (int env = 0; env < envs; ++env) begins = begins && acting_->step(env) < 0;
    if (rewards.is_none()) {
      rewards_.assign(static_cast<size_t>(envs), 0.0f);
      *received = rewards_.data();
      return begins;
    }
    if (single && PyFloat_Check(rewards.ptr())) {  // numpy's float64 is one
      rewards_.assign(1, static_cast<float>(PyFloat_AS_DOUBLE(rewards.ptr())));
      *received = rewards_.data();
    } else if (!read(rewards, {envs}, &rewards_, received)) {
      return false;
    }
    for (int env = 0; env < envs; ++env)
      if (acting_->step(env) >= 0 && !std::isfinite((*received)[env])) return false;
    return true;
  }

  [[noreturn]] void throw_not_finite(int env, const float* action) const {
    std::string numbers;
    for (int j = 0; j < acting_->model().action_dim; ++j)
      numbers += (j == 0 ? "" : ", ") + std::string(py::str(py::float_(action[j])));
    throw std::runtime_error("the model's action is not finite in environment " +
                             std::to_string(env) + " at timestep " +
                             std::to_string(acting_->step(env)) + ": [" + numbers + "]");
  }

  std::shared_ptr<Acting> acting_;
  py::object owners_;  // of what options_ refers to
  std::vector<py::object> versions_;
  ActOptions options_;
  std::vector<float> observations_, rewards_;
};

template <typename T>
py::array_t<T> copy_of(const std::vector<T>& values) {
  return py::array_t<T>(static_cast<py::ssize_t>(values.size()), values.data());
}

py::dict report(const Acting& acting) {
  const Acting::Report& r = acting.report();
  py::dict made;
  made["q"] = copy_of(r.q);
  made["q_initial"] = copy_of(r.q_initial);
  made["distance"] = copy_of(r.distance);
  made["best_step"] = copy_of(r.best_step);
  made["start"] = copy_of(r.start);
  made["flips"] = copy_of(r.flips);
  made["dense_steps"] = copy_of(r.dense_steps);
  made["algorithm"] = r.algorithm == Algorithm::walk ? "walk" : "dense";
  return made;
}

}  // namespace

void bind_acting(py::module_& module) {
  py::class_<PackedTransformer, std::shared_ptr<PackedTransformer>>(module, "PackedTransformer")
      .def(py::init(&pack), py::kw_only(), py::arg("kind"), py::arg("observation_dim"),
           py::arg("action_dim"), py::arg("window"), py::arg("blocks"), py::arg("width"),
           py::arg("heads"), py::arg("max_timestep"), py::arg("sliding"), py::arg("pre_norm"),
           py::arg("relu"), py::arg("rtg_scale"), py::arg("precision"), py::arg("weights").noconvert());

  py::class_<Acting, std::shared_ptr<Acting>>(module, "Acting")
      .def(py::init([](std::shared_ptr<PackedTransformer> model, int envs) {
             if (envs < 1) throw py::value_error("envs: expected at least 1");
             return std::make_shared<Acting>(std::move(model), envs);
           }),
           py::arg("model"), py::arg("envs"))
      .def("reset", [](Acting& self, const std::vector<int>& rows) {
        for (const int row : rows) self.reset(row);
      })
      .def("select", [](const Acting& self, const std::vector<int>& rows) {
        return std::shared_ptr<Acting>(self.select(rows));
      })
      .def("replace_model", [](Acting& self, std::shared_ptr<PackedTransformer> model) {
        self.replace_model(std::move(model));
      })
      .def("steps", [](const Acting& self) {
        std::vector<int64_t> steps;
        for (int env = 0; env < self.envs(); ++env) steps.push_back(self.step(env));
        return copy_of(steps);
      })
      .def("tokens", [](const Acting& self) {
        std::vector<float> tokens;
        for (int env = 0; env < self.envs(); ++env) tokens.push_back(self.token(env));
        return copy_of(tokens);
      })
      .def("begin_step", [](Acting& self, uintptr_t in) { self.begin_step(floats_at(in)); })
      .def("write_tokens", [](Acting& self, uintptr_t in) { self.write_tokens(floats_at(in)); })
      .def("write_actions", [](Acting& self, uintptr_t in) { self.write_actions(floats_at(in)); })
      .def("predict_returns",
           [](Acting& self, uintptr_t out) { self.predict_returns(floats_at(out)); },
           py::call_guard<py::gil_scoped_release>())
      .def("predict_actions",
           [](Acting& self, uintptr_t out) { self.predict_actions(floats_at(out)); },
           py::call_guard<py::gil_scoped_release>())
      .def("seconds", [](const Acting& self) {
        return py::make_tuple(self.report().model_seconds, self.report().refinement_seconds);
      })
      .def("report", &report);

  py::class_<ActCall>(module, "ActCall")
      .def(py::init<std::shared_ptr<Acting>, std::optional<float>, const py::object&,
                    const py::object&, const std::string&, std::optional<int>, bool,
                    std::vector<py::object>>(),
           py::arg("acting"), py::kw_only(), py::arg("target_return"), py::arg("critic"),
           py::arg("options"), py::arg("algorithm"), py::arg("threads"), py::arg("keep_refined"),
           py::arg("versions"))
      .def("__call__", &ActCall::operator(), py::arg("observations"), py::arg("rewards"));
}

}  // namespace dtag
