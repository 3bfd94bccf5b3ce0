#include "simd.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <cstring>

#if defined(__x86_64__) || defined(_M_X64)
#define MEGART_X86 1
#include <immintrin.h>
#ifdef _MSC_VER
#include <intrin.h>
#else
#include <cpuid.h>
#endif
#elif defined(__aarch64__) || defined(_M_ARM64)
#define MEGART_NEON 1
#include <arm_neon.h>
#endif

#ifdef _MSC_VER
#define MEGART_FOR(isa)
#else
#define MEGART_FOR(isa) __attribute__((target(isa)))
#endif

namespace megart::simd {
namespace {

float widen(half h) {
    const std::uint32_t sign = (h & 0x8000u) << 16, exponent = (h >> 10) & 31u, m = h & 0x3ffu;
    std::uint32_t bits;
    if (exponent == 0) {
        const float tiny = static_cast<float>(m) * 0x1p-24f;
        std::memcpy(&bits, &tiny, 4);
        bits |= sign;
    } else if (exponent == 31) {
        bits = sign | 0x7f800000u | (m << 13);
    } else {
        bits = sign | ((exponent + 112) << 23) | (m << 13);
    }
    float result;
    std::memcpy(&result, &bits, 4);
    return result;
}

half narrow(float f) {
    std::uint32_t x;
    std::memcpy(&x, &f, 4);
    const std::uint32_t sign = (x >> 16) & 0x8000u;
    x &= 0x7fffffffu;
    if (x > 0x7f800000u) return static_cast<half>(sign | 0x7e00u | ((x >> 13) & 0x3ffu));
    if (x >= 0x477ff000u) return static_cast<half>(sign | 0x7c00u);  // 65520 and more
    if (x < 0x33000000u) return static_cast<half>(sign);             // below half of 2^-24
    if (x < 0x38800000u) {
        const std::uint32_t shift = 126 - (x >> 23), m = (x & 0x7fffffu) | 0x800000u;
        const std::uint32_t rest = m & ((1u << shift) - 1), middle = 1u << (shift - 1);
        std::uint32_t q = m >> shift;
        if (rest > middle || (rest == middle && (q & 1u))) ++q;
        return static_cast<half>(sign | q);
    }
    x -= 0x38000000u;
    x += 0xfffu + ((x >> 13) & 1u);
    return static_cast<half>(sign | (x >> 13));
}

// Blocks are read by offset: a mapped file gives them any alignment.
half scale_of(const unsigned char* block) {
    half d;
    std::memcpy(&d, block, sizeof d);
    return d;
}

struct Q8 {
    static constexpr std::size_t bytes = kQ8Bytes;
};

struct Q4 {
    static constexpr std::size_t bytes = kQ4Bytes;
};

namespace scalar {
using V = float;
constexpr std::size_t W = 1;
inline V load(const float* p) { return *p; }
inline V load(const half* p) { return widen(*p); }
inline V load(const signed char* p) { return static_cast<float>(*p); }
inline void store(float* p, V v) { *p = v; }
inline void store(half* p, V v) { *p = narrow(v); }
inline void store(signed char* p, V v) { *p = static_cast<signed char>(std::lrint(v)); }
inline V splat(float x) { return x; }
inline V splat(half h) { return widen(h); }
inline V low(const unsigned char* p) { return static_cast<float>((*p & 15) - 8); }
inline V high(const unsigned char* p) { return static_cast<float>((*p >> 4) - 8); }
inline V zero() { return 0.0f; }
inline V mul(V a, V b) { return a * b; }
inline V div(V a, V b) { return a / b; }
inline V add(V a, V b) { return a + b; }
inline V fma(V a, V b, V c) { return a * b + c; }
inline float sum(V v) { return v; }
inline V size(V v) { return std::fabs(v); }
inline V most(V a, V b) { return std::max(a, b); }
inline float most(V v) { return v; }
#define MEGART_TARGET
#include "simd_level.inc"
#undef MEGART_TARGET
}  // namespace scalar

#ifdef MEGART_X86

#define MEGART_TARGET MEGART_FOR("avx2,fma,f16c")
#define MEGART_OP MEGART_TARGET inline

namespace quad {
using V = __m128;
constexpr std::size_t W = 4;
MEGART_OP V load(const float* p) { return _mm_loadu_ps(p); }
MEGART_OP V load(const half* p) {
    return _mm_cvtph_ps(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
}
MEGART_OP V load(const signed char* p) {
    int four;
    std::memcpy(&four, p, sizeof four);
    return _mm_cvtepi32_ps(_mm_cvtepi8_epi32(_mm_cvtsi32_si128(four)));
}
MEGART_OP void store(float* p, V v) { _mm_storeu_ps(p, v); }
MEGART_OP void store(half* p, V v) {
    _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
}
MEGART_OP void store(signed char* p, V v) {
    const __m128i wide = _mm_cvtps_epi32(v), half = _mm_packs_epi32(wide, wide);
    const int four = _mm_cvtsi128_si32(_mm_packs_epi16(half, half));
    std::memcpy(p, &four, sizeof four);
}
MEGART_OP V splat(float x) { return _mm_set1_ps(x); }
MEGART_OP V splat(half h) {
    const V one = _mm_cvtph_ps(_mm_cvtsi32_si128(h));
    return _mm_shuffle_ps(one, one, 0);
}
MEGART_OP __m128i bytes(const unsigned char* p) {
    int four;
    std::memcpy(&four, p, sizeof four);
    return _mm_cvtepu8_epi32(_mm_cvtsi32_si128(four));
}
MEGART_OP V low(const unsigned char* p) {
    return _mm_cvtepi32_ps(
        _mm_sub_epi32(_mm_and_si128(bytes(p), _mm_set1_epi32(15)), _mm_set1_epi32(8)));
}
MEGART_OP V high(const unsigned char* p) {
    return _mm_cvtepi32_ps(_mm_sub_epi32(_mm_srli_epi32(bytes(p), 4), _mm_set1_epi32(8)));
}
MEGART_OP V zero() { return _mm_setzero_ps(); }
MEGART_OP V mul(V a, V b) { return _mm_mul_ps(a, b); }
MEGART_OP V div(V a, V b) { return _mm_div_ps(a, b); }
MEGART_OP V add(V a, V b) { return _mm_add_ps(a, b); }
MEGART_OP V fma(V a, V b, V c) { return _mm_fmadd_ps(a, b, c); }
MEGART_OP float sum(V v) {
    const V pair = _mm_add_ps(v, _mm_movehl_ps(v, v));
    return _mm_cvtss_f32(_mm_add_ss(pair, _mm_movehdup_ps(pair)));
}
MEGART_OP V size(V v) { return _mm_andnot_ps(_mm_set1_ps(-0.0f), v); }
MEGART_OP V most(V a, V b) { return _mm_max_ps(a, b); }
MEGART_OP float most(V v) {
    const V pair = _mm_max_ps(v, _mm_movehl_ps(v, v));
    return _mm_cvtss_f32(_mm_max_ss(pair, _mm_movehdup_ps(pair)));
}
#define MEGART_NARROWER scalar
#include "simd_level.inc"
#undef MEGART_NARROWER
}  // namespace quad

namespace avx2 {
using V = __m256;
constexpr std::size_t W = 8;
MEGART_OP V load(const float* p) { return _mm256_loadu_ps(p); }
MEGART_OP V load(const half* p) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
MEGART_OP V load(const signed char* p) {
    const __m128i eight = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(eight));
}
MEGART_OP void store(float* p, V v) { _mm256_storeu_ps(p, v); }
MEGART_OP void store(half* p, V v) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
}
MEGART_OP void store(signed char* p, V v) {
    const __m256i wide = _mm256_cvtps_epi32(v);
    const __m128i half =
        _mm_packs_epi32(_mm256_castsi256_si128(wide), _mm256_extracti128_si256(wide, 1));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packs_epi16(half, half));
}
MEGART_OP V splat(float x) { return _mm256_set1_ps(x); }
MEGART_OP V splat(half h) { return _mm256_broadcastss_ps(_mm_cvtph_ps(_mm_cvtsi32_si128(h))); }
MEGART_OP __m256i bytes(const unsigned char* p) {
    return _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
}
MEGART_OP V low(const unsigned char* p) {
    const __m256i four_bits = _mm256_and_si256(bytes(p), _mm256_set1_epi32(15));
    return _mm256_cvtepi32_ps(_mm256_sub_epi32(four_bits, _mm256_set1_epi32(8)));
}
MEGART_OP V high(const unsigned char* p) {
    return _mm256_cvtepi32_ps(
        _mm256_sub_epi32(_mm256_srli_epi32(bytes(p), 4), _mm256_set1_epi32(8)));
}
MEGART_OP V zero() { return _mm256_setzero_ps(); }
MEGART_OP V mul(V a, V b) { return _mm256_mul_ps(a, b); }
MEGART_OP V div(V a, V b) { return _mm256_div_ps(a, b); }
MEGART_OP V add(V a, V b) { return _mm256_add_ps(a, b); }
MEGART_OP V fma(V a, V b, V c) { return _mm256_fmadd_ps(a, b, c); }
MEGART_OP float sum(V v) {
    return quad::sum(_mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1)));
}
MEGART_OP V size(V v) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), v); }
MEGART_OP V most(V a, V b) { return _mm256_max_ps(a, b); }
MEGART_OP float most(V v) {
    return quad::most(_mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1)));
}
#define MEGART_NARROWER quad
#include "simd_level.inc"
#undef MEGART_NARROWER
}  // namespace avx2

#undef MEGART_TARGET
#define MEGART_TARGET MEGART_FOR("avx512f,avx2,fma,f16c")

namespace avx512 {
using V = __m512;
constexpr std::size_t W = 16;
MEGART_OP V load(const float* p) { return _mm512_loadu_ps(p); }
MEGART_OP V load(const half* p) {
    // Forms with a full mask: the plain ones trip GCC's -Wmaybe-uninitialized.
    return _mm512_maskz_cvtph_ps(0xffff, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
MEGART_OP V load(const signed char* p) {
    const __m128i sixteen = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return _mm512_maskz_cvtepi32_ps(0xffff, _mm512_maskz_cvtepi8_epi32(0xffff, sixteen));
}
MEGART_OP void store(float* p, V v) { _mm512_storeu_ps(p, v); }
MEGART_OP void store(half* p, V v) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                        _mm512_maskz_cvtps_ph(0xffff, v, _MM_FROUND_TO_NEAREST_INT));
}
MEGART_OP void store(signed char* p, V v) {
    const __m512i wide = _mm512_maskz_cvtps_epi32(0xffff, v);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_maskz_cvtsepi32_epi8(0xffff, wide));
}
MEGART_OP V splat(float x) { return _mm512_set1_ps(x); }
MEGART_OP V splat(half h) {
    return _mm512_maskz_broadcastss_ps(0xffff, _mm_cvtph_ps(_mm_cvtsi32_si128(h)));
}
MEGART_OP __m512i bytes(const unsigned char* p) {
    return _mm512_maskz_cvtepu8_epi32(0xffff, _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
MEGART_OP V low(const unsigned char* p) {
    const __m512i four_bits = _mm512_and_si512(bytes(p), _mm512_set1_epi32(15));
    return _mm512_maskz_cvtepi32_ps(0xffff, _mm512_sub_epi32(four_bits, _mm512_set1_epi32(8)));
}
MEGART_OP V high(const unsigned char* p) {
    const __m512i four_bits = _mm512_maskz_srli_epi32(0xffff, bytes(p), 4);
    return _mm512_maskz_cvtepi32_ps(0xffff, _mm512_sub_epi32(four_bits, _mm512_set1_epi32(8)));
}
MEGART_OP V zero() { return _mm512_setzero_ps(); }
MEGART_OP V mul(V a, V b) { return _mm512_mul_ps(a, b); }
MEGART_OP V div(V a, V b) { return _mm512_div_ps(a, b); }
MEGART_OP V add(V a, V b) { return _mm512_add_ps(a, b); }
MEGART_OP V fma(V a, V b, V c) { return _mm512_fmadd_ps(a, b, c); }
MEGART_OP __m256 part(V v, bool upper) {
    const __m512d whole = _mm512_castps_pd(v);
    return _mm256_castpd_ps(upper ? _mm512_maskz_extractf64x4_pd(0xf, whole, 1)
                                  : _mm512_maskz_extractf64x4_pd(0xf, whole, 0));
}
MEGART_OP float sum(V v) { return avx2::sum(_mm256_add_ps(part(v, false), part(v, true))); }
MEGART_OP V size(V v) { return _mm512_abs_ps(v); }
MEGART_OP V most(V a, V b) { return _mm512_maskz_max_ps(0xffff, a, b); }
MEGART_OP float most(V v) { return avx2::most(_mm256_max_ps(part(v, false), part(v, true))); }
#define MEGART_NARROWER avx2
#include "simd_level.inc"
#undef MEGART_NARROWER
}  // namespace avx512

#undef MEGART_OP
#undef MEGART_TARGET

using Registers = std::array<std::uint32_t, 4>;

Registers cpuid(std::uint32_t leaf) {
    Registers out{};
#ifdef _MSC_VER
    int regs[4];
    __cpuidex(regs, static_cast<int>(leaf), 0);
    for (std::size_t i = 0; i < 4; ++i) out[i] = static_cast<std::uint32_t>(regs[i]);
#else
    __cpuid_count(leaf, 0, out[0], out[1], out[2], out[3]);
#endif
    return out;
}

std::uint64_t enabled_state() {
#ifdef _MSC_VER
    return _xgetbv(0);
#else
    std::uint32_t low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (static_cast<std::uint64_t>(high) << 32) | low;
#endif
}

void add_native(std::vector<const Kernels*>& found) {
    if (cpuid(0)[0] < 7) return;
    const Registers one = cpuid(1), seven = cpuid(7);
    const std::uint32_t wanted = 1u << 12 | 1u << 27 | 1u << 28 | 1u << 29;  // FMA OSXSAVE AVX F16C
    if ((one[2] & wanted) != wanted || !(seven[1] & (1u << 5))) return;      // AVX2
    const std::uint64_t state = enabled_state();
    if ((state & 0x06) != 0x06) return;
    if ((seven[1] & (1u << 16)) && (state & 0xe6) == 0xe6)
        found.push_back(&avx512::table("avx512"));
    found.push_back(&avx2::table("avx2"));
}

#elif defined(MEGART_NEON)

namespace neon {
using V = float32x4_t;
constexpr std::size_t W = 4;
inline V load(const float* p) { return vld1q_f32(p); }
inline V load(const half* p) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p))); }
inline V load(const signed char* p) {
    std::int32_t four;
    std::memcpy(&four, p, sizeof four);
    const int16x8_t wide = vmovl_s8(vreinterpret_s8_s32(vdup_n_s32(four)));
    return vcvtq_f32_s32(vmovl_s16(vget_low_s16(wide)));
}
inline void store(float* p, V v) { vst1q_f32(p, v); }
inline void store(half* p, V v) { vst1_u16(p, vreinterpret_u16_f16(vcvt_f16_f32(v))); }
inline void store(signed char* p, V v) {
    const int16x4_t half = vmovn_s32(vcvtnq_s32_f32(v));
    const std::int32_t four =
        vget_lane_s32(vreinterpret_s32_s8(vmovn_s16(vcombine_s16(half, half))), 0);
    std::memcpy(p, &four, sizeof four);
}
inline V splat(float x) { return vdupq_n_f32(x); }
inline V splat(half h) { return vcvt_f32_f16(vreinterpret_f16_u16(vdup_n_u16(h))); }
inline int32x4_t bytes(const unsigned char* p) {
    std::uint32_t four;
    std::memcpy(&four, p, sizeof four);
    const uint16x8_t wide = vmovl_u8(vreinterpret_u8_u32(vdup_n_u32(four)));
    return vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(wide)));
}
inline V low(const unsigned char* p) {
    return vcvtq_f32_s32(vsubq_s32(vandq_s32(bytes(p), vdupq_n_s32(15)), vdupq_n_s32(8)));
}
inline V high(const unsigned char* p) {
    return vcvtq_f32_s32(vsubq_s32(vshrq_n_s32(bytes(p), 4), vdupq_n_s32(8)));
}
inline V zero() { return vdupq_n_f32(0.0f); }
inline V mul(V a, V b) { return vmulq_f32(a, b); }
inline V div(V a, V b) { return vdivq_f32(a, b); }
inline V add(V a, V b) { return vaddq_f32(a, b); }
inline V fma(V a, V b, V c) { return vfmaq_f32(c, a, b); }
inline float sum(V v) { return vaddvq_f32(v); }
inline V size(V v) { return vabsq_f32(v); }
inline V most(V a, V b) { return vmaxq_f32(a, b); }
inline float most(V v) { return vmaxvq_f32(v); }
#define MEGART_TARGET
#define MEGART_NARROWER scalar
#include "simd_level.inc"
#undef MEGART_NARROWER
#undef MEGART_TARGET
}  // namespace neon

void add_native(std::vector<const Kernels*>& found) { found.push_back(&neon::table("neon")); }

#else

void add_native(std::vector<const Kernels*>&) {}

#endif

const std::vector<const Kernels*>& available() {
    static const std::vector<const Kernels*> all = [] {
        std::vector<const Kernels*> found;
        add_native(found);
        found.push_back(&scalar::table("scalar"));
        return found;
    }();
    return all;
}

std::atomic<const Kernels*>& current() {
    static std::atomic<const Kernels*> in_use{available().front()};
    return in_use;
}

}  // namespace

const Kernels& kernels() noexcept { return *current().load(std::memory_order_relaxed); }

std::vector<std::string> levels() {
    std::vector<std::string> names;
    for (const Kernels* level : available()) names.emplace_back(level->name);
    return names;
}

bool use_level(const std::string& name) {
    for (const Kernels* level : available())
        if (name == level->name) {
            current().store(level, std::memory_order_relaxed);
            return true;
        }
    return false;
}

}  // namespace megart::simd
