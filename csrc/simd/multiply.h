// out = a b + bias for matrices of any size and strides, blocked as Goto and van de Geijn (2008)
// have it: slabs of the inner dimension; of a slab all of b in panels, and of a some rows at a time.
#pragma once

#include <algorithm>

#include "../phases.h"
#include "product_tile.h"

namespace dtag {
inline namespace DTAG_TARGET {

class Multiply {
 public:
  static size_t workspace(const Product& product) { return packed_size(product) * product.count; }

  Multiply(const Product& product, float* workspace)
      : p_(product),
        workspace_(workspace),
        panels_(panels(product.columns)),
        row_items_((product.rows + block_rows - 1) / block_rows),
        column_items_((panels_ + block_panels - 1) / block_panels) {}

  int phases() const { return 2 * ((p_.inner + slab - 1) / slab); }
  int count(int phase) const { return p_.count * items(phase); }
  void item(int phase, int i) const {
    const int start = phase / 2 * slab, inner = std::min(slab, p_.inner - start);
    const int which = i / items(phase), own = i % items(phase);
    if (phase % 2 == 0)
      pack_panel(which, own, start, inner);
    else
      multiply_block(which, own / column_items_, own % column_items_, start, inner);
  }

 private:
  static constexpr int slab = 256;  // a panel of so many rows stays in L1
  static constexpr int block_rows = 96;
  static constexpr int block_panels = 8;
  static_assert(block_rows % tile_rows == 0);

  static size_t packed_size(const Product& product) {
    return static_cast<size_t>(panels(product.columns)) * panel * std::min(slab, product.inner);
  }

  // Of one product.
  int items(int phase) const { return phase % 2 == 0 ? panels_ : row_items_ * column_items_; }

  float* packed(int which, int index, int inner) const {
    return workspace_ + which * packed_size(p_) + static_cast<size_t>(index) * panel * inner;
  }

  void pack_panel(int which, int index, int start, int inner) const {
    const int first = index * panel, width = std::min(panel, p_.columns - first);
    const float* const from =
        p_.b.data + which * p_.next_b + start * p_.b.row + first * p_.b.column;
    float* const to = packed(which, index, inner);
    int k = 0;
    if (p_.b.row == 1 && width == panel)
      for (; k + panel <= inner; k += panel)
        transpose_square(from + k, p_.b.column, to + k * panel);
    if (p_.b.column == 1 && width == panel)
      for (; k < inner; ++k)
        for (int j = 0; j < panel; j += Vec::lanes)
          store(to + k * panel + j, load(from + k * p_.b.row + j));
    for (; k < inner; ++k) {
      for (int j = 0; j < width; ++j) to[k * panel + j] = from[k * p_.b.row + j * p_.b.column];
      for (int j = width; j < panel; ++j) to[k * panel + j] = 0.0f;
    }
  }

  void multiply_block(int which, int row_item, int column_item, int start, int inner) const {
    alignas(64) float rows[block_rows * slab];
    const int first = row_item * block_rows, count = std::min(block_rows, p_.rows - first);
    for (int i = 0; i < count; i += tile_rows)
      pack_rows(which, first + i, std::min(tile_rows, count - i), start, inner, rows + i * inner);
    const int last = std::min(panels_, (column_item + 1) * block_panels);
    const Segments whole{1, inner, 0, 0};
    for (int index = column_item * block_panels; index < last; ++index)
      for (int c = index * panel; c < std::min((index + 1) * panel, p_.columns); c += chunk) {
        const float* const b = packed(which, index, inner) + c % panel;
        for (int i = 0; i < count; i += tile_rows) {
          const Matrix a{rows + i * inner, 1, tile_rows};
          const auto finish = [&](int r, int j, Vec sum) {
            finish_vector(which, first + i + r, c + j, sum, start == 0);
          };
          if (count - i >= tile_rows)
            product_block<tile_rows>(a, 0, b, whole, finish);
          else
            product_rest<tile_rows - 1>(a, 0, count - i, b, whole, finish);
        }
      }
  }

  // to [inner, tile_rows]
  void pack_rows(int which, int first, int count, int start, int inner, float* to) const {
    const float* const from =
        p_.a.data + which * p_.next_a + first * p_.a.row + start * p_.a.column;
    if (count == tile_rows)
      for (int k = 0; k < inner; ++k)
        DTAG_UNROLL
        for (int r = 0; r < tile_rows; ++r)
          to[k * tile_rows + r] = from[r * p_.a.row + k * p_.a.column];
    else
      for (int k = 0; k < inner; ++k)
        for (int r = 0; r < count; ++r)
          to[k * tile_rows + r] = from[r * p_.a.row + k * p_.a.column];
  }

  void finish_vector(int which, int row, int column, Vec sum, bool first) const {
    if (column >= p_.columns) return;
    float* const out = p_.out + which * p_.next_out + row * p_.out_stride + column;
    const float* const bias = p_.bias != nullptr ? p_.bias + which * p_.next_bias + column : nullptr;
    const float* const before = first ? bias : out;
    if (column + Vec::lanes <= p_.columns) {
      store(out, before != nullptr ? load(before) + sum : sum);
      return;
    }
    float lane[Vec::lanes];
    store(lane, sum);
    for (int j = 0; column + j < p_.columns; ++j)
      out[j] = before != nullptr ? before[j] + lane[j] : lane[j];
  }

  const Product& p_;
  float* const workspace_;
  const int panels_, row_items_, column_items_;
};

inline size_t multiply_workspace(const Product& product) { return Multiply::workspace(product); }

inline void multiply(const Product& product, float* workspace, int threads) {
  const Multiply work(product, workspace);
  run_phases(threads, work.phases(), work);
}

}  // namespace DTAG_TARGET
}  // namespace dtag
