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
#include "vector.h"
#include <omp.h>

constexpr int64_t PLACES = 36;
constexpr int64_t PAD = 16;     // floats between places, so that they do not all fall into the same lines of the cache

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
// `zeros` are SIZE pixels of them.
template <class M, int SIZE> INLINE void to_places(const float* image, const Images& shape, int64_t row, int64_t column,
                                                   const float* zeros, float* places, int64_t stride) {
    const float* rows[SIZE];
    for (int i = 0; i < SIZE; i++)
        rows[i] = row + i >= 0 && row + i < shape.height ? image + ((row + i) * shape.width + column) * shape.channels
                                                         : zeros;
    for (int64_t channel = 0; channel < shape.channels; channel += LANES) {
        Vector half[6 * SIZE];
        UNROLLED (int j = 0; j < SIZE; j++) {
            if (column + j >= 0 && column + j < shape.width) {
                Vector pixels[SIZE];
                UNROLLED (int i = 0; i < SIZE; i++) pixels[i] = load(rows[i] + j * shape.channels + channel);
                M::apply(pixels, 1, half + j, SIZE);
            } else {
                UNROLLED (int i = 0; i < 6; i++) half[i * SIZE + j] = Vector{};
            }
        }
        UNROLLED (int i = 0; i < 6; i++) {
            Vector found[6];
            M::apply(half + i * SIZE, 1, found, 1);
            UNROLLED (int j = 0; j < 6; j++) store(places + (i * 6 + j) * stride + channel, found[j]);
        }
    }
}

// What is done to an output before it is stored: + bias (out), + residual (an image), at least `low`.
struct Epilogue {
    const float *bias, *residual;
    float low;
};

// 36 places -> a tile of outputs, as far as it lies in the image.
INLINE void from_places(const float* places, int64_t stride, float* output, int64_t image, const Images& shape,
                        int64_t row, int64_t column, const Epilogue& epilogue) {
    const Vector low = all(epilogue.low);
    for (int64_t channel = 0; channel < shape.channels; channel += LANES) {
        const Vector bias = epilogue.bias ? load(epilogue.bias + channel) : Vector{};
        Vector half[24];
        UNROLLED (int j = 0; j < 6; j++) {
            Vector found[6];
            UNROLLED (int i = 0; i < 6; i++) found[i] = load(places + (i * 6 + j) * stride + channel);
            ATransposed::apply(found, 1, half + j, 6);
        }
        UNROLLED (int i = 0; i < 4; i++) {
            if (row + i >= shape.height) break;
            Vector pixels[4];
            ATransposed::apply(half + i * 6, 1, pixels, 1);
            const int64_t offset = image + ((row + i) * shape.width + column) * shape.channels + channel;
            UNROLLED (int j = 0; j < 4; j++) {
                if (column + j >= shape.width) break;
                Vector value = pixels[j] + bias;
                if (epilogue.residual) value += load(epilogue.residual + offset + j * shape.channels);
                store(output + offset + j * shape.channels, at_least(value, low));
            }
        }
    }
}

// c (ROWS, COLUMNS vectors) = or += a (ROWS, depth) b (depth, COLUMNS vectors). A row of a is `row` floats from the
// next, a column `column`; rows of b and c are `width` floats long.
template <int ROWS, int COLUMNS, bool ADD> INLINE void multiply_rows(const float* a, int64_t row, int64_t column,
                                                                     const float* b, float* c, int64_t width,
                                                                     int64_t depth) {
    Vector sum[ROWS][COLUMNS];
    UNROLLED (int i = 0; i < ROWS; i++)
        UNROLLED (int j = 0; j < COLUMNS; j++) sum[i][j] = ADD ? load(c + i * width + j * LANES) : Vector{};
    for (int64_t k = 0; k < depth; k++) {
        Vector factors[COLUMNS];
        UNROLLED (int j = 0; j < COLUMNS; j++) factors[j] = load(b + k * width + j * LANES);
        UNROLLED (int i = 0; i < ROWS; i++) {
            const float factor = a[i * row + k * column];
            UNROLLED (int j = 0; j < COLUMNS; j++) sum[i][j] += factor * factors[j];
        }
    }
    UNROLLED (int i = 0; i < ROWS; i++)
        UNROLLED (int j = 0; j < COLUMNS; j++) store(c + i * width + j * LANES, sum[i][j]);
}

// As many rows at once as the registers hold, then the rest.
template <int COLUMNS, bool ADD> INLINE void multiply_columns(const float* a, int64_t row, int64_t column,
                                                              const float* b, float* c, int64_t rows, int64_t width,
                                                              int64_t depth) {
    constexpr int MOST = LANES == 8 ? 6 : COLUMNS == 1 ? 16 : 12, SOME = LANES == 8 ? 2 : 4;
    int64_t i = 0;
    for (; i + MOST <= rows; i += MOST)
        multiply_rows<MOST, COLUMNS, ADD>(a + i * row, row, column, b, c + i * width, width, depth);
    for (; i + SOME <= rows; i += SOME)
        multiply_rows<SOME, COLUMNS, ADD>(a + i * row, row, column, b, c + i * width, width, depth);
    for (; i < rows; i++) multiply_rows<1, COLUMNS, ADD>(a + i * row, row, column, b, c + i * width, width, depth);
}

// c (rows, width) = or += a (rows, depth) b (depth, width)
template <bool ADD> static void multiply(const float* a, int64_t row, int64_t column, const float* b, float* c,
                                         int64_t rows, int64_t width, int64_t depth) {
    int64_t j = 0;
    for (; j + 2 * LANES <= width; j += 2 * LANES)
        multiply_columns<2, ADD>(a, row, column, b + j, c + j, rows, width, depth);
    if (j < width) multiply_columns<1, ADD>(a, row, column, b + j, c + j, rows, width, depth);
}

// Whether the weights' places are more than the cache holds.
static bool many(int64_t in, int64_t out) { return in * out >= 192 * 192; }

// output (count, height, width, out) of images (count, height, width, in), padded by 1. With `turned`, weights are
// (in, 3, 3, out) and each is turned by half a circle: the gradient of the inputs from that of the outputs. bias (out)
// and residual (as output) are added where they are given; with `relu` what is below zero becomes zero.
extern "C" void convolve(const float* images, const float* weights, const float* bias, const float* residual,
                         float* output, int64_t count, int64_t height, int64_t width, int64_t in, int64_t out,
                         int64_t turned, int64_t relu) {
    const Images source{count, height, width, in}, target{count, height, width, out};
    const Epilogue epilogue{bias, residual, relu ? 0 : -__builtin_inff()};
    const int64_t tiles = source.tiles();
    // Tiles at once: their places stay in the cache, unless the weights take longer to read, again for every block.
    int64_t block = 24;
    if (many(in, out)) block = std::clamp<int64_t>((tiles / omp_get_max_threads() + 11) / 12 * 12, 24, 252);
    const int64_t d_stride = block * in + PAD, y_stride = block * out + PAD;
    const int64_t g_stride = in * out + PAD;
    const auto g = floats(PLACES * g_stride), zeros = floats(6 * in);
    std::fill_n(zeros.get(), 6 * in, 0.f);
    #pragma omp parallel
    {
        #pragma omp for collapse(2)
        for (int64_t o = 0; o < out; o += LANES)
            for (int64_t i = 0; i < in; i++) {
                Vector weight[9], found[PLACES];
                for (int k = 0; k < 9; k++)
                    for (int64_t l = 0; l < LANES; l++)
                        weight[k][l] = weights[turned ? (i * 9 + 8 - k) * out + o + l : ((o + l) * 9 + k) * in + i];
                both_sides<G, 3, 6>(weight, found);
                for (int place = 0; place < PLACES; place++) store(&g[place * g_stride + i * out + o], found[place]);
            }
        const auto d = floats(PLACES * d_stride), y = floats(PLACES * y_stride);
        #pragma omp for schedule(dynamic)
        for (int64_t first = 0; first < tiles; first += block) {
            const int64_t here = std::min(block, tiles - first);
            int64_t image, row, column;
            for (int64_t t = 0; t < here; t++) {
                source.find(first + t, image, row, column);
                to_places<BTransposed, 6>(images + image, source, row - 1, column - 1, zeros.get(), &d[t * in],
                                          d_stride);
            }
            for (int place = 0; place < PLACES; place++)
                multiply<false>(&d[place * d_stride], in, 1, &g[place * g_stride], &y[place * y_stride], here, out, in);
            for (int64_t t = 0; t < here; t++) {
                target.find(first + t, image, row, column);
                from_places(&y[t * out], y_stride, output, image, target, row, column, epilogue);
            }
        }
    }
}

// The tiles of a batch and of the gradient of its outputs, as places.
struct Gradients {
    const float *images, *grad_output, *zeros;
    const Images source, target;

    INLINE void places(const Gradients& of, int64_t tile, float* d, int64_t d_stride, float* y, int64_t y_stride) {
        int64_t image, row, column;
        of.source.find(tile, image, row, column);
        to_places<BTransposed, 6>(of.images + image, of.source, row - 1, column - 1, of.zeros, d, d_stride);
        of.target.find(tile, image, row, column);
        to_places<A, 4>(of.grad_output + image, of.target, row, column, of.zeros, y, y_stride);
    }
};

// gradient (out, 3, 3, in) of the weights, from the images and the gradient of the outputs. With few channels the tiles
// are shared out, in as many parts whatever the number of threads, so that the sums are the same; else the places are.
extern "C" void weight_gradient(const float* images, const float* grad_output, float* gradient, int64_t count,
                                int64_t height, int64_t width, int64_t in, int64_t out) {
    const bool few = in * out <= 32 * 32;
    const int64_t block = few ? 24 : many(in, out) ? 256 : 48;
    const Images source{count, height, width, in}, target{count, height, width, out};
    const int64_t tiles = source.tiles(), d_stride = block * in + PAD, y_stride = block * out + PAD;
    const int64_t g_stride = in * out + PAD, zeros_count = 6 * std::max(in, out);
    if (!tiles) {
        std::fill_n(gradient, out * 9 * in, 0.f);
        return;
    }
    const int64_t parts = few ? std::min<int64_t>(16, (tiles + block - 1) / block) : 1;
    const auto g = floats(parts * PLACES * g_stride), zeros = floats(zeros_count);
    std::fill_n(zeros.get(), zeros_count, 0.f);
    const Gradients given{images, grad_output, zeros.get(), source, target};
    const auto shared = floats(few ? 0 : PLACES * (d_stride + y_stride));
    #pragma omp parallel
    {
        if (few) {
            const auto d = floats(PLACES * d_stride), y = floats(PLACES * y_stride);
            #pragma omp for schedule(dynamic)
            for (int64_t part = 0; part < parts; part++) {
                const int64_t begin = part * tiles / parts, end = (part + 1) * tiles / parts;
                float* sum = &g[part * PLACES * g_stride];
                for (int64_t first = begin; first < end; first += block) {
                    const int64_t here = std::min(block, end - first);
                    for (int64_t t = 0; t < here; t++)
                        Gradients::places(given, first + t, &d[t * in], d_stride, &y[t * out], y_stride);
                    for (int place = 0; place < PLACES; place++)
                        (first > begin ? multiply<true> : multiply<false>)(
                            &d[place * d_stride], 1, in, &y[place * y_stride], sum + place * g_stride, in, out, here);
                }
            }
        } else {
            float *d = shared.get(), *y = d + PLACES * d_stride;
            for (int64_t first = 0; first < tiles; first += block) {
                const int64_t here = std::min(block, tiles - first);
                #pragma omp for
                for (int64_t t = 0; t < here; t++)
                    Gradients::places(given, first + t, &d[t * in], d_stride, &y[t * out], y_stride);
                #pragma omp for
                for (int place = 0; place < PLACES; place++)
                    (first ? multiply<true> : multiply<false>)(&d[place * d_stride], 1, in, &y[place * y_stride],
                                                               &g[place * g_stride], in, out, here);
            }
        }
        #pragma omp for collapse(2)
        for (int64_t o = 0; o < out; o += LANES)
            for (int64_t i = 0; i < in; i++) {
                Vector found[PLACES], weight[9];
                for (int place = 0; place < PLACES; place++) {
                    found[place] = load(&g[place * g_stride + i * out + o]);
                    for (int64_t part = 1; part < parts; part++)
                        found[place] += load(&g[(part * PLACES + place) * g_stride + i * out + o]);
                }
                both_sides<GTransposed, 6, 3>(found, weight);
                for (int k = 0; k < 9; k++)
                    for (int64_t l = 0; l < LANES; l++) gradient[((o + l) * 9 + k) * in + i] = weight[k][l];
            }
    }
}
