// The operations between the matrix products of eval/scorers/local/fused.py: norms, rotary embeddings, attention on a
// tree. native.py compiles this file for the current processor; kernels.py describes each function.
// It uses the vector extensions that GCC and Clang share, so it runs on any processor. Products of bfloat16 pairs use
// AVX512-BF16 where the processor has it. A row's result depends only on that row's numbers.
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <vector>
#if defined(__AVX512BF16__)
#include <immintrin.h>
#endif

namespace {

constexpr int L = 16;  // lanes
typedef float vec __attribute__((vector_size(4 * L)));
typedef int32_t ivec __attribute__((vector_size(4 * L)));
typedef uint32_t uvec __attribute__((vector_size(4 * L)));
typedef uint16_t hvec __attribute__((vector_size(2 * L)));
typedef uint16_t bf16;

inline vec all(float x) { return vec{} + x; }
inline int64_t up(int64_t n, int64_t k) { return (n + k - 1) / k * k; }

inline float to_float(float x) { return x; }
inline float to_float(bf16 x) {
    uint32_t wide = uint32_t(x) << 16;
    float y;
    memcpy(&y, &wide, 4);
    return y;
}
inline vec load(const float* p) { vec x; memcpy(&x, p, sizeof x); return x; }
inline vec load(const bf16* p) {
    hvec h;
    memcpy(&h, p, sizeof h);
    return (vec)(__builtin_convertvector(h, uvec) << 16);
}
inline void store(float* p, vec x) { memcpy(p, &x, sizeof x); }
inline void store(bf16* p, vec x) {
#if defined(__AVX512BF16__)
    __m256bh h = _mm512_cvtneps_pbh((__m512)x);
    memcpy(p, &h, sizeof h);
#else
    uvec u = (uvec)x;
    u = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;             // round to nearest, ties to even
    u = (uvec)(x == x) & u | ~(uvec)(x == x) & 0x7fc0u;     // a NaN stays a NaN
    hvec h = __builtin_convertvector(u, hvec);
    memcpy(p, &h, sizeof h);
#endif
}
inline float sum(vec x) {
    float s = 0;
    for (int i = 0; i < L; i++) s += x[i];
    return s;
}

// e^x, and 0 for x <= -87; relative error about 1e-7
inline vec exponential(vec x) {
    const ivec in_range = ~(ivec)(x <= -87.0f);  // a NaN stays a NaN
    x = in_range ? x : all(-87.0f);
    const vec shifted = x * 1.44269504f + 12582912.0f;  // its low bits hold the nearest integer
    const vec n = shifted - 12582912.0f;
    const vec r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    vec p = all(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    const vec power = (vec)(((ivec)shifted << 23) + 0x3f800000);
    return (vec)((ivec)(p * power) & in_range);
}

// Multiplication of numbers of type T: `Packed` holds STEP of them, and `dot` adds their products in fp32.
template <class T> struct Pair {  // one at a time, in fp32
    static constexpr int STEP = 1;
    typedef float Packed;
    static Packed pack(const T* p) { return to_float(*p); }
    static Packed pack(const T* p, const T*) { return to_float(*p); }
    static vec dot(vec sum, const Packed* many, Packed single) { return sum + load(many) * single; }
    static void keep(Packed* p, vec x) { store(p, x); }
};
#if defined(__AVX512BF16__)
template <> struct Pair<bf16> {
    static constexpr int STEP = 2;
    typedef uint32_t Packed;
    static Packed pack(const bf16* p) { Packed x; memcpy(&x, p, 4); return x; }
    static Packed pack(const bf16* p, const bf16* q) { return uint32_t(*p) | uint32_t(*q) << 16; }
    static vec dot(vec sum, const Packed* many, Packed single) {
        const __m512i a = _mm512_loadu_si512(many);
        return (vec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)_mm512_set1_epi32(int(single)));
    }
    static void keep(Packed* p, vec x) { store((bf16*)p, x); }
};
#endif

// out[r][c] = sum over j of a[r][j] * b[j][c] for ROWS rows and TILES * L columns; out is fp32
template <class P, int ROWS, int TILES>
inline void tile(const typename P::Packed* a, int64_t lda, const typename P::Packed* b, int64_t ldb, int64_t inner,
                 float* out, int64_t ldo) {
    vec s[ROWS][TILES];
    for (int r = 0; r < ROWS; r++)
        for (int t = 0; t < TILES; t++) s[r][t] = vec{};
    for (int64_t j = 0; j < inner; j++)
        for (int r = 0; r < ROWS; r++)
            for (int t = 0; t < TILES; t++) s[r][t] = P::dot(s[r][t], b + j * ldb + t * L, a[r * lda + j]);
    for (int r = 0; r < ROWS; r++)
        for (int t = 0; t < TILES; t++) store(out + r * ldo + t * L, s[r][t]);
}

template <class P, int ROWS>
inline void columns(const typename P::Packed* a, int64_t lda, const typename P::Packed* b, int64_t ldb, int64_t inner,
                    float* out, int64_t ldo, int64_t width) {
    int64_t c = 0;
    for (; c + 4 * L <= width; c += 4 * L) tile<P, ROWS, 4>(a, lda, b + c, ldb, inner, out + c, ldo);
    if (width - c == 3 * L) tile<P, ROWS, 3>(a, lda, b + c, ldb, inner, out + c, ldo);
    if (width - c == 2 * L) tile<P, ROWS, 2>(a, lda, b + c, ldb, inner, out + c, ldo);
    if (width - c == 1 * L) tile<P, ROWS, 1>(a, lda, b + c, ldb, inner, out + c, ldo);
}

template <class P>
void multiply(const typename P::Packed* a, int64_t lda, const typename P::Packed* b, int64_t ldb, int64_t inner,
              float* out, int64_t ldo, int64_t rows, int64_t width) {
    int64_t r = 0;
    for (; r + 4 <= rows; r += 4) columns<P, 4>(a + r * lda, lda, b, ldb, inner, out + r * ldo, ldo, width);
    for (; r < rows; r++) columns<P, 1>(a + r * lda, lda, b, ldb, inner, out + r * ldo, ldo, width);
}

struct Memory {  // scratch memory of one thread, grown as needed
    std::vector<char> kept;
    template <class T> T* take(size_t& at, int64_t n) {
        T* p = (T*)(kept.data() + at);
        at += up(n * sizeof(T), 64);
        return p;
    }
};

template <class T>
void attend(const T* qkv, int64_t ld_qkv, const T* path, int64_t ld_path, int64_t before, int64_t nodes, int64_t block,
            const int32_t* keys, const int64_t* starts, const int32_t* last, const int32_t* depth, int64_t window,
            int64_t heads, int64_t kv, int64_t d, float scale, T* out) {
    typedef Pair<T> P;
    typedef typename P::Packed Packed;
    constexpr int S = P::STEP;
    const int64_t blocks = (nodes + block - 1) / block, group = heads / kv, dp = up(d, L), rows_most = block * group;
#pragma omp parallel
    {
        Memory memory;
#pragma omp for schedule(dynamic)
        for (int64_t job = 0; job < blocks * kv; job++) {
            const int64_t b = job / kv, h = job % kv, first = b * block;
            const int64_t block_nodes = nodes - first < block ? nodes - first : block;
            const int32_t* which = keys + starts[b];
            const int64_t n = starts[b + 1] - starts[b], np = up(n, L), inner = d / S;
            memory.kept.resize(sizeof(float) * (dp * np * 2 + rows_most * (np * 2 + dp * 2) + block * np + np * 3) + 4096);
            size_t at = 64 - (uintptr_t)memory.kept.data() % 64;
            Packed* k_t = memory.take<Packed>(at, inner * np);
            Packed* v_p = memory.take<Packed>(at, np / S * dp);
            Packed* q_p = memory.take<Packed>(at, rows_most * inner);
            float* scores = memory.take<float>(at, rows_most * np);
            Packed* p_p = memory.take<Packed>(at, rows_most * np / S);
            float* sums = memory.take<float>(at, rows_most * dp);
            int32_t* seen = memory.take<int32_t>(at, block * np);  // all bits set where the node sees the key
            int32_t* key_node = memory.take<int32_t>(at, np);
            int32_t* key_last = memory.take<int32_t>(at, np);
            int32_t* key_end = memory.take<int32_t>(at, np);  // the first depth whose window excludes the key
            auto row = [&](int64_t j) {  // head h's key of node j; its value is kv * d numbers further
                const int64_t node = which[j];
                return node < before ? path + node * ld_path + h * d : qkv + (node - before) * ld_qkv + (heads + h) * d;
            };
            for (int64_t j = 0; j < n; j++) {
                const T* k = row(j);
                for (int64_t i = 0; i < inner; i++) k_t[i * np + j] = P::pack(k + i * S);
            }
            for (int64_t i = 0; i < inner; i++)
                for (int64_t j = n; j < np; j++) k_t[i * np + j] = 0;
            std::vector<T> none(dp, T(0));
            for (int64_t j = 0; j < np; j += S) {
                const T* v = j < n ? row(j) + kv * d : none.data();
                const T* w = j + S - 1 < n ? row(j + S - 1) + kv * d : none.data();
                Packed* to = v_p + j / S * dp;
                for (int64_t i = 0; i < d; i++) to[i] = P::pack(v + i, w + i);
                for (int64_t i = d; i < dp; i++) to[i] = 0;
            }
            for (int64_t c = 0; c < block_nodes; c++)
                for (int64_t g = 0; g < group; g++) {
                    const T* q = qkv + (first + c) * ld_qkv + (h * group + g) * d;
                    for (int64_t i = 0; i < inner; i++) q_p[(c * group + g) * inner + i] = P::pack(q + i * S);
                }
            for (int64_t j = 0; j < np; j++) {
                key_node[j] = j < n ? which[j] : 0;
                key_last[j] = j < n ? last[which[j]] : -1;  // no node attends to padding
                key_end[j] = j < n && window ? depth[which[j]] + int32_t(window) : INT32_MAX;
            }
            for (int64_t c = 0; c < block_nodes; c++) {
                const int32_t node = int32_t(before + first + c), at_depth = depth[node];
                for (int64_t j = 0; j < np; j++) {
                    const bool sees = (key_node[j] <= node) & (node <= key_last[j]) & (at_depth < key_end[j]);
                    seen[c * np + j] = -int32_t(sees);
                }
            }
            const int64_t rows = block_nodes * group;
            multiply<P>(q_p, inner, k_t, np, inner, scores, np, rows, np);
            for (int64_t r = 0; r < rows; r++) {
                float* s = scores + r * np;
                const int32_t* mask = seen + r / group * np;
                vec most = all(-3e38f), total = vec{};
                for (int64_t j = 0; j < np; j += L) {
                    ivec sees;
                    memcpy(&sees, mask + j, sizeof sees);
                    const vec x = sees ? load(s + j) * scale : all(-3e38f);
                    store(s + j, x);
                    most = x > most ? x : most;
                }
                float top = most[0];
                for (int i = 1; i < L; i++) top = most[i] > top ? most[i] : top;
                for (int64_t j = 0; j < np; j += L) {
                    const vec e = exponential(load(s + j) - top);
                    total += e;
                    P::keep(p_p + (r * np + j) / S, e);
                }
                scores[r * np] = 1.0f / sum(total);
            }
            multiply<P>(p_p, np / S, v_p, dp, np / S, sums, dp, rows, dp);
            for (int64_t r = 0; r < rows; r++) {
                const float over = scores[r * np];
                T* to = out + (first + r / group) * heads * d + (h * group + r % group) * d;
                T rounded[L];
                for (int64_t i = 0; i < d; i += L) {
                    const vec x = load(sums + r * dp + i) * over;
                    if (i + L <= d) store(to + i, x);
                    else store(rounded, x), memcpy(to + i, rounded, (d - i) * sizeof(T));
                }
            }
        }
    }
}

// Attention of one token of each dialogue r on its first lengths[r] slots; keys and values: (rows, kv, slots, d)
template <class T>
void decode(const T* q, int64_t ld_q, const T* keys, const T* values, int64_t slots, int64_t rows,
            const int64_t* lengths, int64_t window, int64_t heads, int64_t kv, int64_t d, float scale, T* out) {
    const int64_t group = heads / kv;
#pragma omp parallel for collapse(2)
    for (int64_t r = 0; r < rows; r++)
        for (int64_t h = 0; h < kv; h++) {
            const int64_t end = lengths[r], begin = window && window < end ? end - window : 0, n = end - begin;
            const T* k = keys + ((r * kv + h) * slots + begin) * d;
            const T* v = values + ((r * kv + h) * slots + begin) * d;
            std::vector<float> p(up(n, L)), sums(up(d, L));
            for (int64_t g = 0; g < group; g++) {
                const T* one_q = q + r * ld_q + (h * group + g) * d;
                float top = -3e38f, total = 0;
                for (int64_t j = 0; j < n; j++) {
                    vec s = vec{};
                    float rest = 0;
                    int64_t i = 0;
                    for (; i + L <= d; i += L) s += load(one_q + i) * load(k + j * d + i);
                    for (; i < d; i++) rest += to_float(one_q[i]) * to_float(k[j * d + i]);
                    p[j] = (sum(s) + rest) * scale;
                    top = p[j] > top ? p[j] : top;
                }
                for (int64_t j = n; j < int64_t(p.size()); j++) p[j] = -3e38f;
                for (int64_t j = 0; j < n; j += L) store(p.data() + j, exponential(load(p.data() + j) - top));
                for (auto& x : sums) x = 0;
                for (int64_t j = 0; j < n; j++) {
                    total += p[j];
                    int64_t i = 0;
                    for (; i + L <= d; i += L) store(&sums[i], load(&sums[i]) + load(v + j * d + i) * p[j]);
                    for (; i < d; i++) sums[i] += to_float(v[j * d + i]) * p[j];
                }
                T* to = out + r * heads * d + (h * group + g) * d;
                T part[L];
                for (int64_t i = 0; i < d; i += L) {
                    store(part, load(&sums[i]) / total);
                    memcpy(to + i, part, (d - i < L ? d - i : L) * sizeof(T));
                }
            }
        }
}

template <class T> void normed(const T* x, int64_t rows, int64_t width, float eps, T* out) {
#pragma omp parallel for
    for (int64_t r = 0; r < rows; r++) {
        const T* from = x + r * width;
        T* to = out + r * width;
        vec squares = vec{};
        float rest = 0;
        int64_t i = 0;
        for (; i + L <= width; i += L) squares += load(from + i) * load(from + i);
        for (; i < width; i++) rest += to_float(from[i]) * to_float(from[i]);
        const float over = 1.0f / __builtin_sqrtf((sum(squares) + rest) / float(width) + eps);
        for (i = 0; i + L <= width; i += L) store(to + i, load(from + i) * over);
        if (i < width) {
            T part[L] = {};
            memcpy(part, from + i, (width - i) * sizeof(T));
            store(part, load(part) * over);
            memcpy(to + i, part, (width - i) * sizeof(T));
        }
    }
}

// Rotates pairs of neighbours. turns: cosine and sine of each pair, (rows, d)
template <class T> inline void turn_one(T* at, vec c, vec s) {
    const vec x = load(at);
    const vec y = __builtin_shufflevector(x, x, 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14);
    store(at, x * c + y * s);
}

template <class T> void turn(T* qkv, int64_t ld, int64_t rows, int64_t heads, int64_t d, const float* turns) {
    const vec sign = {-1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1};
#pragma omp parallel for
    for (int64_t r = 0; r < rows; r++)
        for (int64_t i = 0; i < d; i += L) {
            const int64_t n = d - i < L ? d - i : L;
            float angle[L] = {};
            memcpy(angle, turns + r * d + i, n * sizeof(float));
            const vec t = load(angle);
            const vec c = __builtin_shufflevector(t, t, 0, 0, 2, 2, 4, 4, 6, 6, 8, 8, 10, 10, 12, 12, 14, 14);
            const vec s = __builtin_shufflevector(t, t, 1, 1, 3, 3, 5, 5, 7, 7, 9, 9, 11, 11, 13, 13, 15, 15) * sign;
            for (int64_t h = 0; h < heads; h++) {
                T* at = qkv + r * ld + h * d + i;
                if (n == L) {
                    turn_one(at, c, s);
                } else {
                    T part[L] = {};
                    memcpy(part, at, n * sizeof(T));
                    turn_one(part, c, s);
                    memcpy(at, part, n * sizeof(T));
                }
            }
        }
}

}  // namespace

#define EXPORT(T, NAME)                                                                                             \
    extern "C" void attend_##NAME(const T* qkv, int64_t ld_qkv, const T* path, int64_t ld_path, int64_t before,        \
                                  int64_t nodes, int64_t block, const int32_t* keys, const int64_t* starts,           \
                                  const int32_t* last, const int32_t* depth, int64_t window, int64_t heads,           \
                                  int64_t kv, int64_t d, float scale, T* out) {                                       \
        attend<T>(qkv, ld_qkv, path, ld_path, before, nodes, block, keys, starts, last, depth, window, heads, kv, d,  \
                  scale, out);                                                                                        \
    }                                                                                                                 \
    extern "C" void decode_##NAME(const T* q, int64_t ld_q, const T* keys, const T* values, int64_t slots,            \
                                  int64_t rows, const int64_t* lengths, int64_t window, int64_t heads, int64_t kv,    \
                                  int64_t d, float scale, T* out) {                                                   \
        decode<T>(q, ld_q, keys, values, slots, rows, lengths, window, heads, kv, d, scale, out);                     \
    }                                                                                                                 \
    extern "C" void normed_##NAME(const T* x, int64_t rows, int64_t width, float eps, T* out) {                       \
        normed<T>(x, rows, width, eps, out);                                                                          \
    }                                                                                                                 \
    extern "C" void turn_##NAME(T* qkv, int64_t ld, int64_t rows, int64_t heads, int64_t d, const float* turns) {     \
        turn<T>(qkv, ld, rows, heads, d, turns);                                                                      \
    }

EXPORT(float, float32)
EXPORT(bf16, bfloat16)
