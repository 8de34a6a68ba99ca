// A vector of floats of the instruction set that this translation unit is compiled for: AVX-512,
// AVX2 with FMA, SSE2 (the x86-64 baseline) or NEON (arm64). Pointers of load and store need no
// alignment. Comparisons with a NaN are false.
#pragma once

#include <cstdint>
#include <cstring>

#include "../target.h"

#if defined(__AVX512F__) || defined(__AVX2__) || defined(__SSE2__) || defined(_M_X64)
#if defined(__GNUC__) && !defined(__clang__)
// GCC warns of the undefined registers that its own header uses on purpose.
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>
#pragma GCC diagnostic pop
#else
#include <immintrin.h>
#endif
#elif defined(__aarch64__) || defined(_M_ARM64)
#include <arm_neon.h>
#else
#error "no vector instructions known for this processor: build without DTAG_SIMD"
#endif

namespace dtag {
inline namespace DTAG_TARGET {

// Weights in 16 bits: the upper half of a float.
using bfloat16 = uint16_t;

inline float widen(float x) { return x; }
inline float widen(bfloat16 x) {
  const uint32_t bits = static_cast<uint32_t>(x) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

#if defined(__AVX512F__)

struct Vec {
  static constexpr int lanes = 16;
  static constexpr int registers = 32;
  __m512 v;
};
struct Mask {
  __mmask16 m;
};
inline Vec load(const float* p) { return {_mm512_loadu_ps(p)}; }
inline Vec load(const bfloat16* p) {
  const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16))};
}
inline void store(float* p, Vec a) { _mm512_storeu_ps(p, a.v); }
// The numbers of 16 bits in the lower and in the upper half of each lane.
inline Vec low_halves(Vec a) {
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_castps_si512(a.v), 16))};
}
inline Vec high_halves(Vec a) {
  const __m512i upper = _mm512_set1_epi32(static_cast<int>(0xffff0000u));
  return {_mm512_castsi512_ps(_mm512_and_si512(_mm512_castps_si512(a.v), upper))};
}
inline Vec broadcast(float x) { return {_mm512_set1_ps(x)}; }
inline Vec operator+(Vec a, Vec b) { return {_mm512_add_ps(a.v, b.v)}; }
inline Vec operator-(Vec a, Vec b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline Vec operator*(Vec a, Vec b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline Vec operator/(Vec a, Vec b) { return {_mm512_div_ps(a.v, b.v)}; }
inline Vec square_root(Vec a) { return {_mm512_sqrt_ps(a.v)}; }
inline Vec fma(Vec a, Vec b, Vec c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }  // a * b + c
inline Mask operator<=(Vec a, Vec b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_LE_OQ)}; }
inline Mask operator<(Vec a, Vec b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ)}; }
inline Vec select(Mask m, Vec yes, Vec no) { return {_mm512_mask_blend_ps(m.m, no.v, yes.v)}; }
inline Vec power_of_two(Vec n) {  // 2^n for a whole n in [-126, 127]
  return {_mm512_scalef_ps(_mm512_set1_ps(1.0f), n.v)};
}
inline uint32_t bits(Mask m) { return m.m; }  // lane i is bit i
// Writes first + i for each bit i that is set to index, which has room for all lanes; returns how
// many they are.
inline int list_lanes(uint32_t bits, int first, int32_t* index) {
  const __m512i lane = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
  const __m512i all = _mm512_add_epi32(lane, _mm512_set1_epi32(first));
  _mm512_storeu_si512(index, _mm512_maskz_compress_epi32(static_cast<__mmask16>(bits), all));
  return _mm_popcnt_u32(bits);
}
inline float sum(Vec a) {
  const __m256 low = _mm512_castps512_ps256(a.v);
  const __m256 high = _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(a.v), 1));
  const __m256 eight = _mm256_add_ps(low, high);
  __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  four = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(four, _mm_movehdup_ps(four)));
}

#elif defined(__AVX2__)

struct Vec {
  static constexpr int lanes = 8;
  static constexpr int registers = 16;
  __m256 v;
};
struct Mask {
  __m256 m;
};
inline Vec load(const float* p) { return {_mm256_loadu_ps(p)}; }
inline Vec load(const bfloat16* p) {
  const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16))};
}
inline void store(float* p, Vec a) { _mm256_storeu_ps(p, a.v); }
inline Vec low_halves(Vec a) {
  return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(a.v), 16))};
}
inline Vec high_halves(Vec a) {
  const __m256i upper = _mm256_set1_epi32(static_cast<int>(0xffff0000u));
  return {_mm256_castsi256_ps(_mm256_and_si256(_mm256_castps_si256(a.v), upper))};
}
inline Vec broadcast(float x) { return {_mm256_set1_ps(x)}; }
inline Vec operator+(Vec a, Vec b) { return {_mm256_add_ps(a.v, b.v)}; }
inline Vec operator-(Vec a, Vec b) { return {_mm256_sub_ps(a.v, b.v)}; }
inline Vec operator*(Vec a, Vec b) { return {_mm256_mul_ps(a.v, b.v)}; }
inline Vec operator/(Vec a, Vec b) { return {_mm256_div_ps(a.v, b.v)}; }
inline Vec square_root(Vec a) { return {_mm256_sqrt_ps(a.v)}; }
inline Vec fma(Vec a, Vec b, Vec c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
inline Mask operator<=(Vec a, Vec b) { return {_mm256_cmp_ps(a.v, b.v, _CMP_LE_OQ)}; }
inline Mask operator<(Vec a, Vec b) { return {_mm256_cmp_ps(a.v, b.v, _CMP_LT_OQ)}; }
inline Vec select(Mask m, Vec yes, Vec no) { return {_mm256_blendv_ps(no.v, yes.v, m.m)}; }
inline Vec power_of_two(Vec n) {
  const __m256i biased = _mm256_add_epi32(_mm256_cvtps_epi32(n.v), _mm256_set1_epi32(127));
  return {_mm256_castsi256_ps(_mm256_slli_epi32(biased, 23))};
}
inline uint32_t bits(Mask m) { return static_cast<uint32_t>(_mm256_movemask_ps(m.m)); }
inline float sum(Vec a) {
  __m128 four = _mm_add_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
  four = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(four, _mm_movehdup_ps(four)));
}

#elif defined(__SSE2__) || defined(_M_X64)

struct Vec {
  static constexpr int lanes = 4;
  static constexpr int registers = 16;
  __m128 v;
};
struct Mask {
  __m128 m;
};
inline Vec load(const float* p) { return {_mm_loadu_ps(p)}; }
inline Vec load(const bfloat16* p) {
  const __m128i half = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
  return {_mm_castsi128_ps(_mm_unpacklo_epi16(_mm_setzero_si128(), half))};
}
inline void store(float* p, Vec a) { _mm_storeu_ps(p, a.v); }
inline Vec low_halves(Vec a) {
  return {_mm_castsi128_ps(_mm_slli_epi32(_mm_castps_si128(a.v), 16))};
}
inline Vec high_halves(Vec a) {
  const __m128i upper = _mm_set1_epi32(static_cast<int>(0xffff0000u));
  return {_mm_castsi128_ps(_mm_and_si128(_mm_castps_si128(a.v), upper))};
}
inline Vec broadcast(float x) { return {_mm_set1_ps(x)}; }
inline Vec operator+(Vec a, Vec b) { return {_mm_add_ps(a.v, b.v)}; }
inline Vec operator-(Vec a, Vec b) { return {_mm_sub_ps(a.v, b.v)}; }
inline Vec operator*(Vec a, Vec b) { return {_mm_mul_ps(a.v, b.v)}; }
inline Vec operator/(Vec a, Vec b) { return {_mm_div_ps(a.v, b.v)}; }
inline Vec square_root(Vec a) { return {_mm_sqrt_ps(a.v)}; }
inline Vec fma(Vec a, Vec b, Vec c) { return {_mm_add_ps(_mm_mul_ps(a.v, b.v), c.v)}; }
inline Mask operator<=(Vec a, Vec b) { return {_mm_cmple_ps(a.v, b.v)}; }
inline Mask operator<(Vec a, Vec b) { return {_mm_cmplt_ps(a.v, b.v)}; }
inline Vec select(Mask m, Vec yes, Vec no) {
  return {_mm_or_ps(_mm_and_ps(m.m, yes.v), _mm_andnot_ps(m.m, no.v))};
}
inline Vec power_of_two(Vec n) {
  const __m128i biased = _mm_add_epi32(_mm_cvtps_epi32(n.v), _mm_set1_epi32(127));
  return {_mm_castsi128_ps(_mm_slli_epi32(biased, 23))};
}
inline uint32_t bits(Mask m) { return static_cast<uint32_t>(_mm_movemask_ps(m.m)); }
inline float sum(Vec a) {
  const __m128 two = _mm_add_ps(a.v, _mm_movehl_ps(a.v, a.v));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps(two, two, 1)));
}

#else  // NEON

struct Vec {
  static constexpr int lanes = 4;
  static constexpr int registers = 32;
  float32x4_t v;
};
struct Mask {
  uint32x4_t m;
};
inline Vec load(const float* p) { return {vld1q_f32(p)}; }
inline Vec load(const bfloat16* p) {
  return {vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p), 16))};
}
inline void store(float* p, Vec a) { vst1q_f32(p, a.v); }
inline Vec low_halves(Vec a) {
  return {vreinterpretq_f32_u32(vshlq_n_u32(vreinterpretq_u32_f32(a.v), 16))};
}
inline Vec high_halves(Vec a) {
  return {vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_f32(a.v), vdupq_n_u32(0xffff0000u)))};
}
inline Vec broadcast(float x) { return {vdupq_n_f32(x)}; }
inline Vec operator+(Vec a, Vec b) { return {vaddq_f32(a.v, b.v)}; }
inline Vec operator-(Vec a, Vec b) { return {vsubq_f32(a.v, b.v)}; }
inline Vec operator*(Vec a, Vec b) { return {vmulq_f32(a.v, b.v)}; }
inline Vec operator/(Vec a, Vec b) { return {vdivq_f32(a.v, b.v)}; }
inline Vec square_root(Vec a) { return {vsqrtq_f32(a.v)}; }
inline Vec fma(Vec a, Vec b, Vec c) { return {vfmaq_f32(c.v, a.v, b.v)}; }
inline Mask operator<=(Vec a, Vec b) { return {vcleq_f32(a.v, b.v)}; }
inline Mask operator<(Vec a, Vec b) { return {vcltq_f32(a.v, b.v)}; }
inline Vec select(Mask m, Vec yes, Vec no) { return {vbslq_f32(m.m, yes.v, no.v)}; }
inline Vec power_of_two(Vec n) {
  const int32x4_t biased = vaddq_s32(vcvtq_s32_f32(n.v), vdupq_n_s32(127));
  return {vreinterpretq_f32_s32(vshlq_n_s32(biased, 23))};
}
inline uint32_t bits(Mask m) {
  const uint32x4_t weights = {1, 2, 4, 8};
  return vaddvq_u32(vandq_u32(m.m, weights));
}
inline float sum(Vec a) { return vaddvq_f32(a.v); }

#endif

#if !defined(__AVX512F__)
inline int list_lanes(uint32_t bits, int first, int32_t* index) {
  int count = 0;
  for (int i = 0; i < Vec::lanes; ++i) {
    index[count] = first + i;
    count += static_cast<int>(bits >> i & 1);
  }
  return count;
}
#endif

inline Vec zero() { return broadcast(0.0f); }
inline Vec lesser(Vec a, Vec b) { return select(a < b, a, b); }  // b if a is NaN
inline Vec magnitude(Vec a) { return select(a < zero(), zero() - a, a); }
inline float least(Vec a) {
  float lane[Vec::lanes];
  store(lane, a);
  float least = lane[0];
  for (int i = 1; i < Vec::lanes; ++i) least = lane[i] < least ? lane[i] : least;
  return least;
}

}  // namespace DTAG_TARGET
}  // namespace dtag
