// Functions of OpenCL C that a compiler may not open, in a form that it does: PoCL's own are calls, before which every
// vector register goes to memory.
#if defined(__clang__) && !defined(INTELFPGA_CL)
#define ESPALIER_VECTOR(T, N) \
  typedef T##N T##N##_anywhere __attribute__((aligned(sizeof(T)))); \
  static inline T##N __attribute__((overloadable, always_inline)) espalier_load##N(int k, const __global T* p) { \
    return *(const __global T##N##_anywhere*)(p + N * k); \
  } \
  static inline void __attribute__((overloadable, always_inline)) espalier_store##N(T##N v, int k, __global T* p) { \
    *(__global T##N##_anywhere*)(p + N * k) = v; \
  }
#define ESPALIER_VECTORS(T) ESPALIER_VECTOR(T, 2) ESPALIER_VECTOR(T, 4) ESPALIER_VECTOR(T, 8) ESPALIER_VECTOR(T, 16)
ESPALIER_VECTORS(char)
ESPALIER_VECTORS(short)
ESPALIER_VECTORS(int)
ESPALIER_VECTORS(long)
ESPALIER_VECTORS(float)
#define vload2 espalier_load2
#define vload4 espalier_load4
#define vload8 espalier_load8
#define vload16 espalier_load16
#define vstore2 espalier_store2
#define vstore4 espalier_store4
#define vstore8 espalier_store8
#define vstore16 espalier_store16
#define convert_char(x) ((char)(x))
#define convert_char2(x) __builtin_convertvector(x, char2)
#define convert_char4(x) __builtin_convertvector(x, char4)
#define convert_char8(x) __builtin_convertvector(x, char8)
#define convert_char16(x) __builtin_convertvector(x, char16)
#define convert_short(x) ((short)(x))
#define convert_short2(x) __builtin_convertvector(x, short2)
#define convert_short4(x) __builtin_convertvector(x, short4)
#define convert_short8(x) __builtin_convertvector(x, short8)
#define convert_short16(x) __builtin_convertvector(x, short16)
#define convert_int(x) ((int)(x))
#define convert_int2(x) __builtin_convertvector(x, int2)
#define convert_int4(x) __builtin_convertvector(x, int4)
#define convert_int8(x) __builtin_convertvector(x, int8)
#define convert_int16(x) __builtin_convertvector(x, int16)
#define convert_long(x) ((long)(x))
#define convert_long2(x) __builtin_convertvector(x, long2)
#define convert_long4(x) __builtin_convertvector(x, long4)
#define convert_long8(x) __builtin_convertvector(x, long8)
#define convert_long16(x) __builtin_convertvector(x, long16)
#define convert_float(x) ((float)(x))
#define convert_float2(x) __builtin_convertvector(x, float2)
#define convert_float4(x) __builtin_convertvector(x, float4)
#define convert_float8(x) __builtin_convertvector(x, float8)
#define convert_float16(x) __builtin_convertvector(x, float16)
#define max(a, b) ((a) < (b) ? (b) : (a))
#define min(a, b) ((b) < (a) ? (b) : (a))
#endif

// Every second element of two vectors: the even ones, and the odd ones.
#define ESPALIER_HALVES(T, N) \
  static inline T##N espalier_even_##T##N(T##N a, T##N b) { return (T##N)(a.even, b.even); } \
  static inline T##N espalier_odd_##T##N(T##N a, T##N b) { return (T##N)(a.odd, b.odd); }
#define ESPALIER_ALL_HALVES(T) \
  ESPALIER_HALVES(T, 2) ESPALIER_HALVES(T, 4) ESPALIER_HALVES(T, 8) ESPALIER_HALVES(T, 16)
ESPALIER_ALL_HALVES(char)
ESPALIER_ALL_HALVES(short)
ESPALIER_ALL_HALVES(int)
ESPALIER_ALL_HALVES(float)

// Channels between kernels, where the compiler has them.
#ifdef INTELFPGA_CL
#pragma OPENCL EXTENSION cl_intel_channels : enable
#define ESPALIER_CHANNELS
#define ESPALIER_CHANNEL(T, NAME) channel T NAME __attribute__((depth(16)));
#define ESPALIER_READ(NAME) read_channel_intel(NAME)
#define ESPALIER_WRITE(NAME, WORD) write_channel_intel(NAME, WORD)
#define ESPALIER_TASK __attribute__((max_global_work_dim(0)))
#define ESPALIER_AUTORUN __attribute__((max_global_work_dim(0))) __attribute__((autorun))
#endif
