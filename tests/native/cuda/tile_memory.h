// The shared memory of a block of dense tiles as ldmatrix, stmatrix and wgmma read and write it.
#pragma once

#include <cstdint>
#include <cstring>
#include <stdexcept>

#include "dense_input.h"

namespace dtag::cuda {

class TileMemory {
 public:
  explicit TileMemory(char* memory) : memory_(memory) {}

  char* memory() const { return memory_; }
  uint32_t address() const { return first_address; }

  template <bool transposed>
  void get_first(const TilePlace& at, int block, uint32_t (&words)[4]) const {
    for (int word = 0; word < 4; ++word) {
      uint16_t pair[2];
      for (int n = 0; n < 2; ++n) {
        const int row = transposed ? at.lane() % 4 * 2 + n : at.lane() / 4;
        const int column = transposed ? at.lane() / 4 : at.lane() % 4 * 2 + n;
        const int unit = 16 * block + word % 2 * 8 + row;
        const int part = TileLayout::first + word / 2 * TileLayout::first_part;
        std::memcpy(&pair[n], memory_ + part + 16 * unit + 2 * column, 2);
      }
      std::memcpy(&words[word], pair, 4);
    }
  }

  void put(const TilePlace& at, int i, const uint32_t (&fragment)[4]) {
    const int block = at.group() * TileThread::fragments + i;
    for (int word = 0; word < 4; ++word) std::memcpy(place_of(at, block, word), &fragment[word], 4);
  }
  void get(const TilePlace& at, int block, uint32_t (&fragment)[4]) const {
    for (int word = 0; word < 4; ++word) std::memcpy(&fragment[word], place_of(at, block, word), 4);
  }

 protected:
  // Number k of column n of a tile, as the descriptions of shared memory have it: those of a swizzle of 128
  // bytes, in CUTLASS's words ((8, n), (8, k)):((1, LBO), (8, SBO)) and ((8, n), 2):((8, SBO), 1) pieces; n = 1 of
  // the former, so that LBO has no meaning.
  uint16_t word_at(uint64_t tile, bool transposed, int k, int n) const {
    const auto field = [&](int from) { return static_cast<uint32_t>(tile >> from & 0x3fff) << 4; };
    if (tile >> 62 != 1) throw std::logic_error("not swizzled by 128 bytes");
    if (transposed && n >= 64) throw std::logic_error("more columns than lie together");
    const uint32_t start = field(0), stride = field(32);
    const uint32_t at = transposed ? start + k / 8 * stride + k % 8 * 128 + n * 2
                                   : start + n / 8 * stride + n % 8 * 128 + k * 2;
    const uint32_t exchanged = at ^ (at >> 3 & 0x70);
    uint16_t word;
    if (exchanged < first_address || exchanged - first_address + 2 > TileLayout::climbs)
      throw std::logic_error("a tile lies outside of the weights and the layer");
    std::memcpy(&word, memory_ + (exchanged - first_address), sizeof(word));
    return word;
  }

 private:
  // Where the memory would lie on the device.
  static constexpr uint32_t first_address = 2048;

  char* place_of(const TilePlace& at, int block, int word) const {
    const int column = 16 * block;
    const int byte = at.row(word % 2) * 128 + 2 * (column % 64 + 8 * (word / 2) + 2 * at.pair());
    return memory_ + TileLayout::layer + column / 64 * TileLayout::layer_slab + swizzled(byte);
  }

  char* memory_;
};

}  // namespace dtag::cuda
