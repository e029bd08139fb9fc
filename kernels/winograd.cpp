// 3x3 convolutions with a quarter of the multiplications: Winograd's algorithm F(4x4, 3x3) after Lavin and Gray, "Fast
// Algorithms for Convolutional Neural Networks", CVPR 2016, arXiv 1509.09308.
//
// A tile of 4x4 outputs needs 6x6 inputs d and, with the weights g, is
//
//     y = A' [(G g G') * (B' d B)] A          ' transposes, * multiplies each of the 36 places on its own.
//
// With many channels each place is a product of matrices, (tiles, in) times (in, out). The gradient of the weights goes
// the same way back: G' [sum over tiles of (B' d B) * (A dy A')] G.
//
// All images are (count, height, width, channels) in memory, all weights (out, 3, 3, in): torch's channels_last.
// Channels are multiples of 16.
#include <algorithm>
#include <cstdint>
#include <memory>

typedef float Vector __attribute__((vector_size(32), aligned(4), may_alias));   // 8 channels
constexpr int64_t LANES = 8, PLACES = 36;
constexpr int64_t PAD = 16;     // floats between places, so that they do not all fall into the same lines of the cache

#define INLINE static inline __attribute__((always_inline))
#define UNROLLED _Pragma("GCC unroll 6") for

INLINE Vector load(const float* from) { return *(const Vector*)from; }
INLINE void store(float* to, Vector value) { *(Vector*)to = value; }

// The matrices, each as what it does to a column: `from` and `to` are read and written in steps of `in` and `out`.

struct BTransposed {    // 6 inputs -> 6 places
    template <class T> INLINE void apply(const T* from, int in, T* to, int out) {
        T a = from[0], b = from[in], c = from[2 * in], d = from[3 * in], e = from[4 * in], f = from[5 * in];
        T even = e - 4 * c, odd = d - 4 * b, even2 = e - c, odd2 = 2 * (d - b);
        to[0] = 4 * a - 5 * c + e;
        to[out] = even + odd;
        to[2 * out] = even - odd;
        to[3 * out] = even2 + odd2;
        to[4 * out] = even2 - odd2;
        to[5 * out] = 4 * b - 5 * d + f;
    }
};

struct G {              // 3 weights -> 6 places
    template <class T> INLINE void apply(const T* from, int in, T* to, int out) {
        T a = from[0], b = from[in], c = from[2 * in];
        to[0] = a * (1 / 4.f);
        to[out] = (a + b + c) * (-1 / 6.f);
        to[2 * out] = (a - b + c) * (-1 / 6.f);
        to[3 * out] = (a + 2 * b + 4 * c) * (1 / 24.f);
        to[4 * out] = (a - 2 * b + 4 * c) * (1 / 24.f);
        to[5 * out] = c;
    }
};

struct ATransposed {    // 6 places -> 4 outputs
    template <class T> INLINE void apply(const T* from, int in, T* to, int out) {
        T a = from[0], b = from[in], c = from[2 * in], d = from[3 * in], e = from[4 * in], f = from[5 * in];
        T sum = b + c, difference = b - c, sum2 = d + e, difference2 = d - e;
        to[0] = a + sum + sum2;
        to[out] = difference + 2 * difference2;
        to[2 * out] = sum + 4 * sum2;
        to[3 * out] = difference + 8 * difference2 + f;
    }
};

struct A {              // gradients of 4 outputs -> 6 places
    template <class T> INLINE void apply(const T* from, int in, T* to, int out) {
        T a = from[0], b = from[in], c = from[2 * in], d = from[3 * in];
        T even = a + c, odd = b + d, even2 = a + 4 * c, odd2 = 2 * b + 8 * d;
        to[0] = a;
        to[out] = even + odd;
        to[2 * out] = even - odd;
        to[3 * out] = even2 + odd2;
        to[4 * out] = even2 - odd2;
        to[5 * out] = d;
    }
};

struct GTransposed {    // 6 places -> gradients of 3 weights
    template <class T> INLINE void apply(const T* from, int in, T* to, int out) {
        T a = from[0], b = from[in], c = from[2 * in], d = from[3 * in], e = from[4 * in], f = from[5 * in];
        T sum = (b + c) * (1 / 6.f), difference = (b - c) * (1 / 6.f);
        T sum2 = (d + e) * (1 / 24.f), difference2 = (d - e) * (1 / 24.f);
        to[0] = a * (1 / 4.f) - sum + sum2;
        to[out] = 2 * difference2 - difference;
        to[2 * out] = 4 * sum2 - sum + f;
    }
};

// Matrix M x from (FROM, FROM) -> to (TO, TO): M from M'.
template <class M, int FROM, int TO, class T> INLINE void both_sides(const T* from, T* to) {
    T half[TO * FROM];
    UNROLLED (int column = 0; column < FROM; column++) M::apply(from + column, FROM, half + column, FROM);
    UNROLLED (int row = 0; row < TO; row++) M::apply(half + row * FROM, 1, to + row * TO, 1);
}

// A batch of images and the tiles of its outputs.
struct Images {
    int64_t count, height, width, channels;

    int64_t down() const { return (height + 3) / 4; }
    int64_t across() const { return (width + 3) / 4; }
    int64_t tiles() const { return count * down() * across(); }

    // Offset, row and column of a tile's first output.
    void find(int64_t tile, int64_t& image, int64_t& row, int64_t& column) const {
        image = tile / (down() * across()) * height * width * channels;
        row = tile / across() % down() * 4;
        column = tile % across() * 4;
    }
};

// SIZE x SIZE pixels from (row, column), zeros outside the image -> 36 places, `stride` floats apart, of all channels.
template <class M, int SIZE> INLINE void to_places(const float* image, const Images& shape, int64_t row, int64_t column,
                                                   float* places, int64_t stride) {
    bool inside = row >= 0 && column >= 0 && row + SIZE <= shape.height && column + SIZE <= shape.width;
    for (int64_t channel = 0; channel < shape.channels; channel += LANES) {
        Vector tile[SIZE * SIZE], found[PLACES];
        UNROLLED (int i = 0; i < SIZE; i++)
            UNROLLED (int j = 0; j < SIZE; j++) {
                int64_t y = row + i, x = column + j;
                if (inside || (y >= 0 && x >= 0 && y < shape.height && x < shape.width))
                    tile[i * SIZE + j] = load(image + (y * shape.width + x) * shape.channels + channel);
                else
                    tile[i * SIZE + j] = Vector{};
            }
        both_sides<M, SIZE, 6>(tile, found);
        for (int place = 0; place < PLACES; place++) store(places + place * stride + channel, found[place]);
    }
}

// 36 places -> a tile of outputs, as far as it lies in the image.
INLINE void from_places(const float* places, int64_t stride, float* image, const Images& shape, int64_t row,
                        int64_t column) {
    for (int64_t channel = 0; channel < shape.channels; channel += LANES) {
        Vector found[PLACES], tile[16];
        for (int place = 0; place < PLACES; place++) found[place] = load(places + place * stride + channel);
        both_sides<ATransposed, 6, 4>(found, tile);
        UNROLLED (int i = 0; i < 4; i++)
            UNROLLED (int j = 0; j < 4; j++)
                if (row + i < shape.height && column + j < shape.width)
                    store(image + ((row + i) * shape.width + column + j) * shape.channels + channel, tile[i * 4 + j]);
    }
}

// c (ROWS, 16) = or += a (ROWS, depth) b (depth, 16). A row of a is `row` floats from the next, a column `column`; rows
// of b and c are `width` floats long.
template <int ROWS, bool ADD> INLINE void multiply_rows(const float* a, int64_t row, int64_t column, const float* b,
                                                        float* c, int64_t width, int64_t depth) {
    Vector sum[ROWS][2];
    UNROLLED (int i = 0; i < ROWS; i++)
        UNROLLED (int j = 0; j < 2; j++) sum[i][j] = ADD ? load(c + i * width + j * LANES) : Vector{};
    for (int64_t k = 0; k < depth; k++) {
        Vector left = load(b + k * width), right = load(b + k * width + LANES);
        UNROLLED (int i = 0; i < ROWS; i++) {
            float factor = a[i * row + k * column];
            sum[i][0] += factor * left;
            sum[i][1] += factor * right;
        }
    }
    UNROLLED (int i = 0; i < ROWS; i++)
        UNROLLED (int j = 0; j < 2; j++) store(c + i * width + j * LANES, sum[i][j]);
}

// c (rows, width) = or += a (rows, depth) b (depth, width)
template <bool ADD> static void multiply(const float* a, int64_t row, int64_t column, const float* b, float* c,
                                         int64_t rows, int64_t width, int64_t depth) {
    for (int64_t j = 0; j < width; j += 2 * LANES) {
        int64_t i = 0;
        for (; i + 6 <= rows; i += 6)
            multiply_rows<6, ADD>(a + i * row, row, column, b + j, c + i * width + j, width, depth);
        for (; i + 2 <= rows; i += 2)
            multiply_rows<2, ADD>(a + i * row, row, column, b + j, c + i * width + j, width, depth);
        for (; i < rows; i++)
            multiply_rows<1, ADD>(a + i * row, row, column, b + j, c + i * width + j, width, depth);
    }
}

static std::unique_ptr<float[]> floats(int64_t count) { return std::unique_ptr<float[]>(new float[count]); }

// output (count, height, width, out) of images (count, height, width, in), padded by 1. With `turned`, weights are
// (in, 3, 3, out) and each is turned by half a circle: the gradient of the inputs from that of the outputs.
extern "C" void convolve(const float* images, const float* weights, float* output, int64_t count, int64_t height,
                         int64_t width, int64_t in, int64_t out, int64_t turned) {
    constexpr int64_t BLOCK = 24;       // tiles whose places stay in the cache
    const Images source{count, height, width, in}, target{count, height, width, out};
    const int64_t tiles = source.tiles(), d_stride = BLOCK * in + PAD, y_stride = BLOCK * out + PAD;
    const int64_t g_stride = in * out + PAD;
    const auto g = floats(PLACES * g_stride);
    #pragma omp parallel
    {
        #pragma omp for collapse(2)
        for (int64_t i = 0; i < in; i++)
            for (int64_t o = 0; o < out; o += LANES) {
                Vector weight[9], found[PLACES];
                for (int k = 0; k < 9; k++)
                    for (int64_t l = 0; l < LANES; l++)
                        weight[k][l] = weights[turned ? (i * 9 + 8 - k) * out + o + l : ((o + l) * 9 + k) * in + i];
                both_sides<G, 3, 6>(weight, found);
                for (int place = 0; place < PLACES; place++) store(&g[place * g_stride + i * out + o], found[place]);
            }
        const auto d = floats(PLACES * d_stride), y = floats(PLACES * y_stride);
        #pragma omp for schedule(dynamic)
        for (int64_t first = 0; first < tiles; first += BLOCK) {
            const int64_t here = std::min(BLOCK, tiles - first);
            int64_t image, row, column;
            for (int64_t t = 0; t < here; t++) {
                source.find(first + t, image, row, column);
                to_places<BTransposed, 6>(images + image, source, row - 1, column - 1, &d[t * in], d_stride);
            }
            for (int place = 0; place < PLACES; place++)
                multiply<false>(&d[place * d_stride], in, 1, &g[place * g_stride], &y[place * y_stride], here, out, in);
            for (int64_t t = 0; t < here; t++) {
                target.find(first + t, image, row, column);
                from_places(&y[t * out], y_stride, output + image, target, row, column);
            }
        }
    }
}

// gradient (out, 3, 3, in) of the weights, from the images and the gradient of the outputs.
extern "C" void weight_gradient(const float* images, const float* grad_output, float* gradient, int64_t count,
                                int64_t height, int64_t width, int64_t in, int64_t out) {
    constexpr int64_t BLOCK = 48;
    const Images source{count, height, width, in}, target{count, height, width, out};
    const int64_t tiles = source.tiles(), d_stride = BLOCK * in + PAD, y_stride = BLOCK * out + PAD;
    const int64_t g_stride = in * out + PAD;
    if (!tiles) {
        std::fill_n(gradient, out * 9 * in, 0.f);
        return;
    }
    const auto g = floats(PLACES * g_stride), d = floats(PLACES * d_stride), y = floats(PLACES * y_stride);
    #pragma omp parallel
    {
        for (int64_t first = 0; first < tiles; first += BLOCK) {
            const int64_t here = std::min(BLOCK, tiles - first);
            #pragma omp for
            for (int64_t t = 0; t < here; t++) {
                int64_t image, row, column;
                source.find(first + t, image, row, column);
                to_places<BTransposed, 6>(images + image, source, row - 1, column - 1, &d[t * in], d_stride);
                target.find(first + t, image, row, column);
                to_places<A, 4>(grad_output + image, target, row, column, &y[t * out], y_stride);
            }
            #pragma omp for
            for (int place = 0; place < PLACES; place++)
                (first ? multiply<true> : multiply<false>)(&d[place * d_stride], 1, in, &y[place * y_stride],
                                                           &g[place * g_stride], in, out, here);
        }
        #pragma omp for collapse(2)
        for (int64_t o = 0; o < out; o += LANES)
            for (int64_t i = 0; i < in; i++) {
                Vector found[PLACES], weight[9];
                for (int place = 0; place < PLACES; place++) found[place] = load(&g[place * g_stride + i * out + o]);
                both_sides<GTransposed, 6, 3>(found, weight);
                for (int k = 0; k < 9; k++)
                    for (int64_t l = 0; l < LANES; l++) gradient[((o + l) * 9 + k) * in + i] = weight[k][l];
            }
    }
}
