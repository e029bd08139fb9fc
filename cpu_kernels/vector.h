// A register of several channels, and the operations of the kernels on it.
#pragma once
#include <algorithm>
#include <cstdint>
#include <memory>

#ifdef __AVX512F__
constexpr int64_t LANES = 16;
#else
constexpr int64_t LANES = 8;
#endif
typedef float Vector __attribute__((vector_size(LANES * 4), aligned(4), may_alias));

#define INLINE static inline __attribute__((always_inline))
#define UNROLLED _Pragma("GCC unroll 16") for

INLINE Vector load(const float* from) { return *(const Vector*)from; }
INLINE void store(float* to, Vector value) { *(Vector*)to = value; }
INLINE Vector all(float value) { return value - Vector{}; }
INLINE Vector at_least(Vector value, Vector low) { return value < low ? low : value; }     // NaN stays NaN

static inline std::unique_ptr<float[]> floats(int64_t count) { return std::unique_ptr<float[]>(new float[count]); }
