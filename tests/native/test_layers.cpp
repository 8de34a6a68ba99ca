// What the layers and the optimiser of a sequence model are computed with in training, in every
// instruction set that runs here, against plain loops in float64, at sizes at which loops end early,
// late, or do not begin. Results are the same bits for any number of threads.
//
//   test_layers
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "training_checks.h"

namespace dtag::test {
namespace {

constexpr float untouched = 123.0f;

std::string sizes(const std::vector<int>& all) {
  std::string text;
  for (const int each : all) text += (text.empty() ? "" : " x ") + std::to_string(each);
  return text;
}

// --- products of matrices ---

// A matrix in memory of its own, with a gap after every row of it or of its transpose.
struct Stored {
  Stored(Random& random, int rows, int columns, bool transposed, int gap)
      : lead((transposed ? rows : columns) + gap),
        numbers(drawn(random, static_cast<size_t>((transposed ? columns : rows) - 1) * lead +
                                  (transposed ? rows : columns))),
        matrix{numbers.data(), transposed ? 1 : lead, transposed ? lead : 1} {}

  double at(int i, int k) const { return numbers[i * matrix.row + k * matrix.column]; }

  ptrdiff_t lead;
  Floats numbers;
  Matrix matrix;
};

void check_product(Report& report, const TrainingKernels& with, Random& random, int rows,
                   int columns, int inner) {
  const bool a_transposed = random.below(2) == 1, b_transposed = random.below(2) == 1;
  const Stored a(random, rows, inner, a_transposed, random.below(4));
  const Stored b(random, inner, columns, b_transposed, random.below(4));
  const Floats bias = drawn(random, static_cast<size_t>(columns));
  const bool with_bias = random.below(3) != 0;
  const int stride = columns + random.below(4);
  const std::string name = "product " + sizes({rows, columns, inner}) + (a_transposed ? " T" : " N") +
                           (b_transposed ? "T" : "N");
  Floats first;
  for (const int threads : {1, 3}) {
    Floats out(static_cast<size_t>(rows - 1) * stride + columns, untouched);
    const Product product{rows,     columns,  inner,
                          a.matrix, b.matrix, with_bias ? bias.data() : nullptr,
                          out.data(), stride};
    const Workspace workspace(with.multiply_workspace(product));
    with.multiply(product, workspace.get(), threads);
    if (threads > 1) {
      report.check(name + " by threads", out == first);
      continue;
    }
    first = out;
    Difference difference;
    bool gaps = true;
    for (int i = 0; i < rows; ++i)
      for (int j = 0; j < stride && i * stride + j < static_cast<int>(out.size()); ++j) {
        if (j >= columns) {
          gaps = gaps && out[static_cast<size_t>(i) * stride + j] == untouched;
          continue;
        }
        double expected = with_bias ? bias[static_cast<size_t>(j)] : 0.0;
        for (int k = 0; k < inner; ++k) expected += a.at(i, k) * b.at(k, j);
        difference.add(out[static_cast<size_t>(i) * stride + j], expected);
      }
    report.check(name, difference.worst(), 2e-5);
    report.check(name + " writes into gaps", gaps);
  }
}

// Several in one call are each of them alone, bit for bit; here all have one a, as heads have.
void check_several(Report& report, const TrainingKernels& with, Random& random, int rows,
                   int columns, int inner) {
  constexpr int count = 3;
  const Stored a(random, rows, inner, false, 1);
  const ptrdiff_t next_b = static_cast<ptrdiff_t>(inner) * columns + 5, next_bias = columns + 2;
  const ptrdiff_t next_out = static_cast<ptrdiff_t>(rows) * columns + 7;
  const Floats b = drawn(random, static_cast<size_t>(count * next_b));
  const Floats bias = drawn(random, static_cast<size_t>(count * next_bias));
  Floats out(static_cast<size_t>(count * next_out), untouched), expected = out;
  Product product{rows,     columns,     inner,      a.matrix, Matrix{b.data(), columns, 1},
                  bias.data(), out.data(), columns};
  for (int e = 0; e < count; ++e) {
    Product alone = product;
    alone.b.data += e * next_b;
    alone.bias += e * next_bias;
    alone.out = expected.data() + e * next_out;
    const Workspace workspace(with.multiply_workspace(alone));
    with.multiply(alone, workspace.get(), 1);
  }
  product.count = count;
  product.next_b = next_b;
  product.next_bias = next_bias;
  product.next_out = next_out;
  for (const int threads : {1, 3}) {
    out.assign(out.size(), untouched);
    const Workspace workspace(with.multiply_workspace(product));
    with.multiply(product, workspace.get(), threads);
    report.check("three products " + sizes({rows, columns, inner}), out == expected);
  }
}

void check_products(Report& report, const TrainingKernels& with) {
  Random random(1);
  for (const int rows : {1, 5, 17, 33})
    for (const int columns : {1, 7, 17, 32, 47})
      for (const int inner : {1, 17, 40}) check_product(report, with, random, rows, columns, inner);
  // beyond a slab of the inner dimension, a block of rows, a block of columns
  check_product(report, with, random, 3, 33, 513);
  check_product(report, with, random, 97, 20, 19);
  check_product(report, with, random, 5, 259, 33);
  check_several(report, with, random, 5, 7, 3);
  check_several(report, with, random, 97, 70, 300);
}

// --- GELU and dropout ---

constexpr int64_t lengths[] = {1, 7, 16, 17, 33, (1 << 14) + 5};

void check_gelu(Report& report, const TrainingKernels& with) {
  Random random(2);
  for (const int64_t elements : lengths) {
    const Floats x = drawn(random, static_cast<size_t>(elements), 8.0f);
    Floats value(x.size()), slope(x.size());
    with.gelu(x.data(), value.data(), slope.data(), elements, 2);
    Difference difference;
    for (size_t i = 0; i < x.size(); ++i) {
      const double z = x[i], share = 0.5 * std::erfc(-z / std::sqrt(2.0));
      difference.add(value[i], z * share);
      difference.add(slope[i], share + z * std::exp(-0.5 * z * z) / std::sqrt(2.0 * std::acos(-1.0)));
    }
    report.check("gelu of " + std::to_string(elements), difference.worst(), 2e-6);
  }
}

void check_dropout(Report& report, const TrainingKernels& with) {
  Random random(3);
  for (const int64_t elements : lengths) {
    const Floats x = drawn(random, static_cast<size_t>(elements));
    const Dropout how{random.next(), 0x40000000u, 4.0f / 3.0f};
    Floats out(x.size()), again(x.size());
    with.dropout(x.data(), out.data(), elements, how, 1);
    with.dropout(x.data(), again.data(), elements, how, 3);
    bool either = true;
    size_t dropped = 0;
    for (size_t i = 0; i < x.size(); ++i) {
      either = either && (out[i] == 0.0f || out[i] == x[i] * how.scale);
      dropped += out[i] == 0.0f;
    }
    const std::string name = "dropout of " + std::to_string(elements);
    report.check(name + " keeps or drops", either);
    report.check(name + " by threads", out == again);
    if (elements < 1000) continue;
    const double share = static_cast<double>(dropped) / static_cast<double>(elements);
    report.check(name + " drops a quarter", std::abs(share - 0.25) < 0.02);
    const Dropout other{how.seed + 1, how.threshold, how.scale};
    with.dropout(x.data(), again.data(), elements, other, 1);
    report.check(name + " follows from the seed", out != again);
  }
}

// --- attention ---

// [batch, heads, length, width] as layers have it, [batch, length, heads, width], with gaps between
// the rows.
struct HeadTensor {
  HeadTensor(const Attention& a, int gap, Floats given)
      : numbers(std::move(given)),
        heads{numbers.data(), a.length * (a.heads * a.width + gap), a.width, a.heads * a.width + gap} {}
  static size_t count(const Attention& a, int gap) {
    return static_cast<size_t>(a.batch * a.length - 1) * (a.heads * a.width + gap) +
           a.heads * a.width;
  }
  float at(int b, int h, int i, int d) const {
    return numbers[b * heads.batch + h * heads.head + i * heads.row + d];
  }

  Floats numbers;
  Heads heads;
};

void check_attention(Report& report, const TrainingKernels& with, int batch, int heads, int length,
                     int width, bool masked) {
  Random random(static_cast<uint64_t>(length * 1000 + width));
  Attention a{};
  a.batch = batch, a.heads = heads, a.length = length, a.width = width;
  a.scale = 1.0f / std::sqrt(static_cast<float>(width));
  a.dropout = {0, 0, 1.0f};  // none
  // One mask for all heads of a batch: half of all keys, for some rows none.
  std::vector<uint8_t> mask(static_cast<size_t>(batch) * length * length);
  for (uint8_t& seen : mask) seen = random.below(2) != 0;
  if (masked) {
    std::fill_n(mask.begin(), length, uint8_t{0});
    a.mask = mask.data(), a.mask_batch = length * length, a.mask_row = length;
  }
  const int gap = random.below(3);
  const auto filled = [&](float scale) {
    return HeadTensor(a, gap, drawn(random, HeadTensor::count(a, gap), scale));
  };
  const auto empty = [&] {
    return HeadTensor(a, gap, Floats(HeadTensor::count(a, gap), untouched));
  };
  HeadTensor q = filled(3.0f), k = filled(3.0f), v = filled(1.0f), by_out = filled(1.0f);
  HeadTensor out = empty(), by_q = empty(), by_k = empty(), by_v = empty();
  Floats p(static_cast<size_t>(batch) * heads * length * length, untouched);
  a.query = q.heads, a.key = k.heads, a.value = v.heads, a.out = out.heads;
  a.by_out = by_out.heads, a.by_query = by_q.heads, a.by_key = by_k.heads, a.by_value = by_v.heads;
  a.probabilities = p.data();
  with.attend(a, false, 2);
  with.attend(a, true, 2);

  Difference forward, backward;
  const size_t n = static_cast<size_t>(length);
  for (int b = 0; b < batch; ++b)
    for (int h = 0; h < heads; ++h) {
      const auto dot = [&](const HeadTensor& x, int i, const HeadTensor& y, int j) {
        double sum = 0.0;
        for (int d = 0; d < width; ++d)
          sum += static_cast<double>(x.at(b, h, i, d)) * y.at(b, h, j, d);
        return sum;
      };
      std::vector<Doubles> share(n, Doubles(n)), by_score(n, Doubles(n));
      for (int i = 0; i < length; ++i) {
        double most = -1e300, total = 0.0, mean = 0.0;
        Doubles score(n), by_share(n);
        std::vector<int> seen;
        for (int j = 0; j < length; ++j)
          if (masked ? mask[static_cast<size_t>((b * length + i) * length + j)] != 0 : j <= i)
            seen.push_back(j);
        for (const int j : seen)
          most = std::max(most, score[static_cast<size_t>(j)] = a.scale * dot(q, i, k, j));
        for (const int j : seen) total += std::exp(score[static_cast<size_t>(j)] - most);
        for (const int j : seen) {
          const size_t at = static_cast<size_t>(j);
          share[static_cast<size_t>(i)][at] = std::exp(score[at] - most) / total;
          mean += share[static_cast<size_t>(i)][at] * (by_share[at] = dot(by_out, i, v, j));
        }
        for (const int j : seen) {
          const size_t at = static_cast<size_t>(j);
          by_score[static_cast<size_t>(i)][at] =
              a.scale * share[static_cast<size_t>(i)][at] * (by_share[at] - mean);
        }
      }
      // Row i of sum over j of weight(i, j) x_j.
      const auto compare = [&](Difference& difference, const HeadTensor& found, const HeadTensor& x,
                               const std::function<double(size_t, size_t)>& weight) {
        for (int i = 0; i < length; ++i)
          for (int d = 0; d < width; ++d) {
            double expected = 0.0;
            for (int j = 0; j < length; ++j)
              expected += weight(static_cast<size_t>(i), static_cast<size_t>(j)) * x.at(b, h, j, d);
            difference.add(found.at(b, h, i, d), expected);
          }
      };
      compare(forward, out, v, [&](size_t i, size_t j) { return share[i][j]; });
      compare(backward, by_q, k, [&](size_t i, size_t j) { return by_score[i][j]; });
      compare(backward, by_k, q, [&](size_t i, size_t j) { return by_score[j][i]; });
      compare(backward, by_v, by_out, [&](size_t i, size_t j) { return share[j][i]; });
    }
  const std::string name = "attention " + sizes({batch, heads, length, width}) +
                           (masked ? ", masked" : "");
  report.check(name, forward.worst(), 1e-5);
  report.check(name + " backward", backward.worst(), 2e-5);
  bool gaps = true;
  for (const HeadTensor* x : {&out, &by_q, &by_k, &by_v})
    for (size_t i = 0; i < x->numbers.size(); ++i)
      if (static_cast<ptrdiff_t>(i) % x->heads.row >= heads * width)
        gaps = gaps && x->numbers[i] == untouched;
  report.check(name + " writes into gaps", gaps);
}

// --- LAMB ---

void check_lamb(Report& report, const TrainingKernels& with, float weight_decay) {
  Random random(5);
  const std::vector<size_t> counts = {1, 5, 16, 33, (1 << 14) + 3, 17};
  struct Own {
    Floats value, gradient, mean, square;
    Doubles expected, expected_mean, expected_square;
  };
  std::vector<Own> tensors;
  for (const size_t count : counts) {
    Own own{drawn(random, count), {}, Floats(count), Floats(count), {}, {}, {}};
    if (count == counts.back()) own.value.assign(count, 0.0f);  // whose step is not scaled
    own.expected.assign(own.value.begin(), own.value.end());
    own.expected_mean.resize(count), own.expected_square.resize(count);
    tensors.push_back(std::move(own));
  }
  for (int step = 1; step <= 3; ++step) {
    const double beta1 = 0.9, beta2 = 0.999, factor = 0.5;
    const Lamb lamb{0.01f,
                    static_cast<float>(1.0 / (1.0 - std::pow(beta1, step))),
                    static_cast<float>(1.0 / std::sqrt(1.0 - std::pow(beta2, step))),
                    1e-3f,
                    weight_decay,
                    static_cast<float>(factor),
                    beta1,
                    beta2};
    std::vector<LambTensor> list;
    for (Own& own : tensors) {
      own.gradient = drawn(random, own.value.size());
      list.push_back({own.value.data(), own.gradient.data(), own.mean.data(), own.square.data(),
                      static_cast<int64_t>(own.value.size())});
    }
    const int count = static_cast<int>(list.size());
    Doubles sums(static_cast<size_t>(with.lamb_sums(list.data(), count)), std::nan(""));
    with.lamb_step(list.data(), count, lamb, sums.data(), 2);
    for (Own& own : tensors) {
      Doubles update(own.value.size());
      double norm = 0.0, of_update = 0.0;
      for (size_t i = 0; i < update.size(); ++i) {
        const double g = factor * own.gradient[i];
        double &m = own.expected_mean[i], &s = own.expected_square[i];
        m += (1.0 - beta1) * (g - m);
        s = beta2 * s + (1.0 - beta2) * g * g;
        update[i] = m * lamb.mean_factor / (std::sqrt(s) * lamb.root_factor + lamb.epsilon) +
                    weight_decay * own.expected[i];
        norm += own.expected[i] * own.expected[i], of_update += update[i] * update[i];
      }
      const bool scaled = weight_decay != 0.0f && norm > 0.0 && of_update > 0.0;
      const double scale = scaled ? std::sqrt(norm / of_update) : 1.0;
      for (size_t i = 0; i < update.size(); ++i) own.expected[i] -= lamb.rate * scale * update[i];
    }
  }
  Difference difference;
  for (const Own& own : tensors) {
    difference.add(own.value, own.expected);
    difference.add(own.mean, own.expected_mean);
    difference.add(own.square, own.expected_square);
  }
  report.check("lamb with decay " + std::to_string(weight_decay), difference.worst(), 2e-6);
}

void check_all(Report& report, const TrainingKernels& with) {
  check_products(report, with);
  check_gelu(report, with);
  check_dropout(report, with);
  for (const bool masked : {false, true}) {
    check_attention(report, with, 1, 1, 1, 16, masked);
    check_attention(report, with, 3, 2, 3, 48, masked);
    check_attention(report, with, 5, 7, 15, 16, masked);  // more heads than an item of work has
    check_attention(report, with, 2, 1, 17, 32, masked);
    check_attention(report, with, 1, 1, most_length, 16, masked);
  }
  check_lamb(report, with, 0.0f);
  check_lamb(report, with, 0.01f);
}

}  // namespace
}  // namespace dtag::test

int main() { return dtag::test::Report::over_all_isas(dtag::test::check_all); }
