// Vectors of kLanes numbers, by the compiler's vector extension: the same source becomes SSE2, AVX2, AVX-512 or NEON.
// Included by *_simd.cpp only, which CMake compiles once per level with FASTPOSE_SIMD naming the level. Everything here has
// internal linkage or lives in the level's namespace, so that no AVX-512 copy of a shared inline function can be linked
// into code that runs on older CPUs.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <type_traits>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "dtype.h"

namespace fastpose::FASTPOSE_SIMD {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

template <typename A> struct VecOf { typedef A type __attribute__((vector_size(kLanes * sizeof(A)))); };
template <typename A> using Vec = typename VecOf<A>::type;
template <typename A> using Mask = Vec<std::conditional_t<sizeof(A) == 8, int64_t, int32_t>>;

template <typename To, typename From> static inline To bit_cast(const From& from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  __builtin_memcpy(&to, &from, sizeof(To));
  return to;
}

template <typename A> static inline Vec<A> splat(A a) { return a - Vec<A>{}; }

// 0, 1, 2, ...
template <typename A> static inline Vec<A> iota() {
  Vec<A> v;
  for (int i = 0; i < kLanes; ++i) v[i] = A(i);
  return v;
}

template <typename V> static inline V max(V a, V b) { return a > b ? a : b; }
template <typename V> static inline V min(V a, V b) { return a < b ? a : b; }

static inline Vec<float> sqrt(Vec<float> v) {
#if defined(__AVX512F__)
  return bit_cast<Vec<float>>(_mm512_sqrt_ps(bit_cast<__m512>(v)));
#elif defined(__AVX2__)
  return bit_cast<Vec<float>>(_mm256_sqrt_ps(bit_cast<__m256>(v)));
#else
  for (int i = 0; i < kLanes; ++i) v[i] = std::sqrt(float(v[i]));
  return v;
#endif
}
static inline Vec<double> sqrt(Vec<double> v) {
  for (int i = 0; i < kLanes; ++i) v[i] = std::sqrt(double(v[i]));
  return v;
}

template <typename A> static inline A horizontal_sum(Vec<A> v) {
  A s[kLanes];
  __builtin_memcpy(s, &v, sizeof v);
  for (int n = kLanes / 2; n; n /= 2)
    for (int i = 0; i < n; ++i) s[i] += s[i + n];
  return s[0];
}

template <typename A> static inline A horizontal_max(Vec<A> v) {
  A s[kLanes];
  __builtin_memcpy(s, &v, sizeof v);
  for (int n = kLanes / 2; n; n /= 2)
    for (int i = 0; i < n; ++i) s[i] = s[i] > s[i + n] ? s[i] : s[i + n];
  return s[0];
}

// ---- one element <-> its accumulator ------------------------------------------------------------------------------

static inline float widen(float v) { return v; }
static inline double widen(double v) { return v; }
static inline float widen(BFloat16 v) { return bit_cast<float>(uint32_t(v.bits) << 16); }
static inline float widen(Half v) {
  // The exponent moves from bias 15 to bias 127 by a multiplication, which is exact for subnormals too.
  uint32_t magnitude = uint32_t(v.bits & 0x7fff) << 13;
  uint32_t bits = bit_cast<uint32_t>(bit_cast<float>(magnitude) * 0x1p112f);
  if (magnitude >= 0x7c00u << 13) bits = magnitude | 0x7f800000u;  // infinity and NaN
  return bit_cast<float>(bits | uint32_t(v.bits & 0x8000) << 16);
}

static inline void narrow(float a, float* p) { *p = a; }
static inline void narrow(double a, double* p) { *p = a; }
static inline void narrow(float a, BFloat16* p) {
  uint32_t u = bit_cast<uint32_t>(a);
  p->bits = a != a ? 0x7fc0 : uint16_t((u + 0x7fff + ((u >> 16) & 1)) >> 16);
}
static inline void narrow(float a, Half* p) {
  uint32_t u = bit_cast<uint32_t>(a), sign = (u >> 16) & 0x8000, magnitude = u & 0x7fffffffu;
  uint32_t bits;
  if (a != a) bits = 0x7e00;
  else if (magnitude >= 0x477ff000u) bits = 0x7c00;                           // rounds to infinity
  else if (magnitude < 0x38800000u)                                            // subnormal: let the adder round
    bits = bit_cast<uint32_t>(bit_cast<float>(magnitude) + 0.5f) - 0x3f000000u;
  else bits = (magnitude - 0x38000000u + 0xfff + ((magnitude >> 13) & 1)) >> 13;
  p->bits = uint16_t(sign | bits);
}

// ---- kLanes neighbouring elements <-> a vector ---------------------------------------------------------------------

template <typename T> static inline Vec<Accumulator<T>> load(const T* p) {
  using A = Accumulator<T>;
  if constexpr (std::is_same_v<T, A>) {
    Vec<A> v;
    __builtin_memcpy(&v, p, sizeof v);
    return v;
  } else if constexpr (std::is_same_v<T, BFloat16>) {
    Vec<uint16_t> bits;
    __builtin_memcpy(&bits, p, sizeof bits);
    return bit_cast<Vec<float>>(__builtin_convertvector(bits, Vec<uint32_t>) << 16);
  } else {
#if defined(__AVX512F__)
    return bit_cast<Vec<float>>(_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))));
#elif defined(__AVX2__)
    return bit_cast<Vec<float>>(_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
#else
    Vec<float> v;
    for (int i = 0; i < kLanes; ++i) v[i] = widen(p[i]);
    return v;
#endif
  }
}

static inline Vec<int32_t> load_bytes(const uint8_t* p) {
#if defined(__AVX512F__)
  return bit_cast<Vec<int32_t>>(_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
#elif defined(__AVX2__)
  return bit_cast<Vec<int32_t>>(_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
#else
  Vec<uint8_t> bytes;
  __builtin_memcpy(&bytes, p, sizeof bytes);
  return __builtin_convertvector(bytes, Vec<int32_t>);
#endif
}

template <typename T> static inline void store(Vec<Accumulator<T>> v, T* p) {
  using A = Accumulator<T>;
  if constexpr (std::is_same_v<T, A>) {
    __builtin_memcpy(p, &v, sizeof v);
  } else if constexpr (std::is_same_v<T, BFloat16>) {
    Vec<uint32_t> u = bit_cast<Vec<uint32_t>>(v);
    Vec<uint32_t> rounded = (u + 0x7fff + ((u >> 16) & 1)) >> 16;
    rounded = v != v ? Vec<uint32_t>{} + 0x7fc0 : rounded;
    Vec<uint16_t> bits = __builtin_convertvector(rounded, Vec<uint16_t>);
    __builtin_memcpy(p, &bits, sizeof bits);
  } else {
#if defined(__AVX512F__)
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(bit_cast<__m512>(v), _MM_FROUND_TO_NEAREST_INT));
#elif defined(__AVX2__)
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(bit_cast<__m256>(v), _MM_FROUND_TO_NEAREST_INT));
#else
    for (int i = 0; i < kLanes; ++i) narrow(A(v[i]), p + i);
#endif
  }
}

// A store past the caches, for maps that would be gone from there before anybody reads them: it spares reading what it overwrites.
// `p` is aligned to a vector of T. Whoever streams calls end_stream at the end, or other threads might not see it.
template <typename T> static inline void stream(Vec<Accumulator<T>> v, T* p) {
#if defined(__x86_64__)
  T narrowed[kLanes];
  store(v, narrowed);
#if defined(__AVX512F__)
  if constexpr (sizeof narrowed == 64) return _mm512_stream_si512(reinterpret_cast<__m512i*>(p), bit_cast<__m512i>(narrowed));
#endif
#if defined(__AVX2__)
  if constexpr (sizeof narrowed == 32) return _mm256_stream_si256(reinterpret_cast<__m256i*>(p), bit_cast<__m256i>(narrowed));
#endif
  if constexpr (sizeof narrowed == 16) return _mm_stream_si128(reinterpret_cast<__m128i*>(p), bit_cast<__m128i>(narrowed));
#endif
  store(v, p);
}
static inline void end_stream() {
#if defined(__x86_64__)
  _mm_sfence();
#endif
}

// Reads and writes run so many elements behind what is asked for: past the end of a page, where the hardware stops looking ahead.
template <typename T> constexpr int64_t ahead() { return 4096 / int64_t(sizeof(T)); }

// Columns x .. x+kLanes-1 of a row that is `width` wide and whose columns lie `stride` apart; columns past the end read `fill`
// and are not written.
template <typename T>
static inline Vec<Accumulator<T>> load_columns(const T* row, int64_t x, int64_t width, int64_t stride, Accumulator<T> fill) {
  if (stride == 1 && x + kLanes <= width) return load(row + x);
  auto v = splat<Accumulator<T>>(fill);
  for (int i = 0; i < kLanes && x + i < width; ++i) v[i] = widen(row[(x + i) * stride]);
  return v;
}

template <typename T>
static inline void store_columns(Vec<Accumulator<T>> v, T* row, int64_t x, int64_t width, int64_t stride) {
  if (stride == 1 && x + kLanes <= width) return store(v, row + x);
  for (int i = 0; i < kLanes && x + i < width; ++i) narrow(Accumulator<T>(v[i]), row + (x + i) * stride);
}

// Of the lanes of a and then b, those with these numbers.
template <typename V, typename Lane> static inline V shuffle(V a, V b, Lane lane) {
#ifdef __clang__  // whose own builtin takes constants alone
  V v;
  for (int i = 0; i < kLanes; ++i) v[i] = lane[i] < kLanes ? a[lane[i]] : b[lane[i] - kLanes];
  return v;
#else
  return __builtin_shuffle(a, b, lane);
#endif
}

// kLanes rows of kLanes columns become columns of rows: in each stage pairs of rows exchange halves, quarters, ...
template <int kStep, typename V> static inline void exchange(V (&rows)[kLanes]) {
  using Lane = Vec<std::conditional_t<sizeof(V) / kLanes == 8, int64_t, int32_t>>;
  Lane low, high;
  for (int i = 0; i < kLanes; ++i) {
    low[i] = i & kStep ? kLanes + i - kStep : i;
    high[i] = i & kStep ? kLanes + i : i + kStep;
  }
  for (int i = 0; i < kLanes; ++i) {
    if (i & kStep) continue;
    const V a = rows[i], b = rows[i + kStep];
    rows[i] = shuffle(a, b, low);
    rows[i + kStep] = shuffle(a, b, high);
  }
}
template <typename V> static inline void transpose(V (&rows)[kLanes]) {
  if constexpr (kLanes == 16) exchange<8>(rows);
  if constexpr (kLanes >= 8) exchange<4>(rows);
  exchange<2>(rows);
  exchange<1>(rows);
}

// ---- exp ----------------------------------------------------------------------------------------------------------

// exp for arguments <= 0 or so (no overflow handling above 88): 0 below -87.3, where torch's own exp is 10 to 40 times slower;
// NaN stays NaN. Range reduction by ln 2 in two parts and a polynomial of degree 6: within 2 ulp.
static inline Vec<float> exp(Vec<float> x) {
  Vec<float> t = max(x, splat(-88.0f));
  t = x != x ? x : t;
  Vec<float> n = (t * 1.44269504f + 12582912.0f) - 12582912.0f;  // adding 1.5 * 2^23 rounds to an integer
  Vec<float> r = t - n * 0.693359375f + n * 2.12194440e-4f;
  Vec<float> p = splat(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  Vec<int32_t> exponent = __builtin_convertvector(n, Vec<int32_t>);
  Vec<float> result = p * bit_cast<Vec<float>>((exponent + 127) << 23);
  return x < -87.3f ? Vec<float>{} : result;
}

static inline Vec<double> exp(Vec<double> x) {
  for (int i = 0; i < kLanes; ++i) x[i] = std::exp(double(x[i]));
  return x;
}

// ---- working memory of one thread ------------------------------------------------------------------------------------

static inline int64_t padded(int64_t n) { return (n + kLanes - 1) / kLanes * kLanes; }

constexpr size_t kAlignment = kLanes * sizeof(double);  // of the widest vector

// Not std::vector: see the note on linkage above.
template <typename A> struct Scratch {
  A* data;
  explicit Scratch(int64_t n)
      : data(static_cast<A*>(std::aligned_alloc(kAlignment, (n * sizeof(A) / kAlignment + 1) * kAlignment))) {
    if (!data) std::abort();
  }
  ~Scratch() { std::free(data); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
};

}  // namespace fastpose::FASTPOSE_SIMD
