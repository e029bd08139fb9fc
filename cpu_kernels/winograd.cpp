// 3x3 convolutions with a quarter of the multiplications: Winograd's algorithm F(4x4, 3x3) after Lavin and Gray, "Fast
// Algorithms for Convolutional Neural Networks", CVPR 2016, arXiv 1509.09308.
//
// A tile of 4x4 outputs needs 6x6 inputs d and, with the weights g, is
//
//     y = A' [(G g G') * (B' d B)] A          ' transposes, * multiplies the 36 elements one by one.
//
// With several channels, each of the 36 elements is a matrix product, (tiles, in) times (in, out). The gradient of the
// weights is G' [sum over tiles of (B' d B) * (A dy A')] G.
//
// Images are (count, height, width, channels) in memory, weights (out, 3, 3, in): torch's channels_last. The numbers of
// channels are multiples of 16.
#include "vector.h"
#include <omp.h>

constexpr int64_t ELEMENTS = 36;    // of a transformed tile
constexpr int64_t PAD = 16;         // floats between elements, so that they do not compete for the same cache lines

// Each matrix as the function that multiplies a column by it. `in` and `out` are the strides of `from` and `to`.

struct BTransposed {    // 6 inputs -> 6 elements
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

struct G {              // 3 weights -> 6 elements
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

struct ATransposed {    // 6 elements -> 4 outputs
    template <class T> INLINE void apply(const T* from, int in, T* to, int out) {
        T a = from[0], b = from[in], c = from[2 * in], d = from[3 * in], e = from[4 * in], f = from[5 * in];
        T sum = b + c, difference = b - c, sum2 = d + e, difference2 = d - e;
        to[0] = a + sum + sum2;
        to[out] = difference + 2 * difference2;
        to[2 * out] = sum + 4 * sum2;
        to[3 * out] = difference + 8 * difference2 + f;
    }
};

struct A {              // gradients of 4 outputs -> 6 elements
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

struct GTransposed {    // 6 elements -> gradients of 3 weights
    template <class T> INLINE void apply(const T* from, int in, T* to, int out) {
        T a = from[0], b = from[in], c = from[2 * in], d = from[3 * in], e = from[4 * in], f = from[5 * in];
        T sum = (b + c) * (1 / 6.f), difference = (b - c) * (1 / 6.f);
        T sum2 = (d + e) * (1 / 24.f), difference2 = (d - e) * (1 / 24.f);
        to[0] = a * (1 / 4.f) - sum + sum2;
        to[out] = 2 * difference2 - difference;
        to[2 * out] = 4 * sum2 - sum + f;
    }
};

// to (TO, TO) = M from M', from (FROM, FROM).
template <class M, int FROM, int TO, class T> INLINE void transform(const T* from, T* to) {
    T half[TO * FROM];
    UNROLLED (int column = 0; column < FROM; column++) M::apply(from + column, FROM, half + column, FROM);
    UNROLLED (int row = 0; row < TO; row++) M::apply(half + row * FROM, 1, to + row * TO, 1);
}

// The shape of a batch of images, and its tiles of 4x4 pixels.
struct Images {
    int64_t count, height, width, channels;

    int64_t tile_rows() const { return (height + 3) / 4; }
    int64_t tile_columns() const { return (width + 3) / 4; }
    int64_t tiles() const { return count * tile_rows() * tile_columns(); }

    // The offset of a tile's image, and the row and column of its first pixel.
    void locate(int64_t tile, int64_t& image, int64_t& row, int64_t& column) const {
        image = tile / (tile_rows() * tile_columns()) * height * width * channels;
        row = tile / tile_columns() % tile_rows() * 4;
        column = tile % tile_columns() * 4;
    }
};

// Transform SIZE x SIZE pixels from (row, column), zero outside the image, to 36 elements of all channels, `stride`
// floats apart. zeros: SIZE pixels of zeros.
template <class M, int SIZE> INLINE void load_tile(const float* image, const Images& shape, int64_t row, int64_t column,
                                                   const float* zeros, float* elements, int64_t stride) {
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
            Vector row_elements[6];
            M::apply(half + i * SIZE, 1, row_elements, 1);
            UNROLLED (int j = 0; j < 6; j++) store(elements + (i * 6 + j) * stride + channel, row_elements[j]);
        }
    }
}

// Applied to an output before it is stored: + bias (out), + residual (an image), max with `lowest`.
struct Epilogue {
    const float *bias, *residual;
    float lowest;
};

// Transform 36 elements to a tile of outputs, and store those inside the image.
INLINE void store_tile(const float* elements, int64_t stride, float* output, int64_t image, const Images& shape,
                       int64_t row, int64_t column, const Epilogue& epilogue) {
    const Vector lowest = all(epilogue.lowest);
    for (int64_t channel = 0; channel < shape.channels; channel += LANES) {
        const Vector bias = epilogue.bias ? load(epilogue.bias + channel) : Vector{};
        Vector half[24];
        UNROLLED (int j = 0; j < 6; j++) {
            Vector column_elements[6];
            UNROLLED (int i = 0; i < 6; i++) column_elements[i] = load(elements + (i * 6 + j) * stride + channel);
            ATransposed::apply(column_elements, 1, half + j, 6);
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
                store(output + offset + j * shape.channels, at_least(value, lowest));
            }
        }
    }
}

// c (ROWS, COLUMNS vectors) = a (ROWS, depth) b (depth, COLUMNS vectors), or += with ADD. `row` and `column` are the
// strides of a; rows of b and c are `width` floats long.
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

// As many rows at a time as the registers hold, then the rest.
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

// c (rows, width) = a (rows, depth) b (depth, width), or += with ADD.
template <bool ADD> static void multiply(const float* a, int64_t row, int64_t column, const float* b, float* c,
                                         int64_t rows, int64_t width, int64_t depth) {
    int64_t j = 0;
    for (; j + 2 * LANES <= width; j += 2 * LANES)
        multiply_columns<2, ADD>(a, row, column, b + j, c + j, rows, width, depth);
    if (j < width) multiply_columns<1, ADD>(a, row, column, b + j, c + j, rows, width, depth);
}

// Whether the transformed weights exceed the cache.
static bool exceeds_cache(int64_t in, int64_t out) { return in * out >= 192 * 192; }

// output (count, height, width, out) of images (count, height, width, in), padded by 1. bias (out) and residual (shape
// of output) are added unless they are null; then a ReLU with `relu`. With `is_rotated`, weights are (in, 3, 3, out),
// rotated by 180 degrees, which gives the gradient of the inputs from that of the outputs.
extern "C" void convolve(const float* images, const float* weights, const float* bias, const float* residual,
                         float* output, int64_t count, int64_t height, int64_t width, int64_t in, int64_t out,
                         int64_t is_rotated, int64_t relu) {
    const Images source{count, height, width, in}, target{count, height, width, out};
    const Epilogue epilogue{bias, residual, relu ? 0 : -__builtin_inff()};
    const int64_t tiles = source.tiles();
    // Tiles of a block: few enough to stay in the cache, unless the weights, read once a block, exceed it themselves.
    int64_t block = 24;
    if (exceeds_cache(in, out)) block = std::clamp<int64_t>((tiles / omp_get_max_threads() + 11) / 12 * 12, 24, 252);
    const int64_t d_stride = block * in + PAD, y_stride = block * out + PAD;
    const int64_t g_stride = in * out + PAD;
    const auto g = floats(ELEMENTS * g_stride), zeros = floats(6 * in);
    std::fill_n(zeros.get(), 6 * in, 0.f);
    #pragma omp parallel
    {
        #pragma omp for collapse(2)
        for (int64_t o = 0; o < out; o += LANES)
            for (int64_t i = 0; i < in; i++) {
                Vector weight[9], elements[ELEMENTS];
                for (int k = 0; k < 9; k++)
                    for (int64_t l = 0; l < LANES; l++)
                        weight[k][l] = weights[is_rotated ? (i * 9 + 8 - k) * out + o + l : ((o + l) * 9 + k) * in + i];
                transform<G, 3, 6>(weight, elements);
                for (int e = 0; e < ELEMENTS; e++) store(&g[e * g_stride + i * out + o], elements[e]);
            }
        const auto d = floats(ELEMENTS * d_stride), y = floats(ELEMENTS * y_stride);
        #pragma omp for schedule(dynamic)
        for (int64_t first = 0; first < tiles; first += block) {
            const int64_t length = std::min(block, tiles - first);
            int64_t image, row, column;
            for (int64_t t = 0; t < length; t++) {
                source.locate(first + t, image, row, column);
                load_tile<BTransposed, 6>(images + image, source, row - 1, column - 1, zeros.get(), &d[t * in],
                                          d_stride);
            }
            for (int e = 0; e < ELEMENTS; e++)
                multiply<false>(&d[e * d_stride], in, 1, &g[e * g_stride], &y[e * y_stride], length, out, in);
            for (int64_t t = 0; t < length; t++) {
                target.locate(first + t, image, row, column);
                store_tile(&y[t * out], y_stride, output, image, target, row, column, epilogue);
            }
        }
    }
}

// gradient (out, 3, 3, in) of the weights, from the images and the gradient of the outputs. With few channels the
// threads share the tiles, in a number of parts that does not depend on the number of threads, so that the sums are
// always the same; otherwise they share the elements.
extern "C" void weight_gradient(const float* images, const float* grad_output, float* gradient, int64_t count,
                                int64_t height, int64_t width, int64_t in, int64_t out) {
    const bool has_few_channels = in * out <= 32 * 32;
    const int64_t block = has_few_channels ? 24 : exceeds_cache(in, out) ? 256 : 48;
    const Images source{count, height, width, in}, target{count, height, width, out};
    const int64_t tiles = source.tiles(), d_stride = block * in + PAD, y_stride = block * out + PAD;
    const int64_t g_stride = in * out + PAD, zeros_count = 6 * std::max(in, out);
    if (!tiles) {
        std::fill_n(gradient, out * 9 * in, 0.f);
        return;
    }
    const int64_t parts = has_few_channels ? std::min<int64_t>(16, (tiles + block - 1) / block) : 1;
    const auto g = floats(parts * ELEMENTS * g_stride), zeros = floats(zeros_count);
    std::fill_n(zeros.get(), zeros_count, 0.f);
    const auto load_tiles = [&](int64_t tile, float* d, float* y) {
        int64_t image, row, column;
        source.locate(tile, image, row, column);
        load_tile<BTransposed, 6>(images + image, source, row - 1, column - 1, zeros.get(), d, d_stride);
        target.locate(tile, image, row, column);
        load_tile<A, 4>(grad_output + image, target, row, column, zeros.get(), y, y_stride);
    };
    const auto shared = floats(has_few_channels ? 0 : ELEMENTS * (d_stride + y_stride));
    #pragma omp parallel
    {
        if (has_few_channels) {
            const auto d = floats(ELEMENTS * d_stride), y = floats(ELEMENTS * y_stride);
            #pragma omp for schedule(dynamic)
            for (int64_t part = 0; part < parts; part++) {
                const int64_t begin = part * tiles / parts, end = (part + 1) * tiles / parts;
                float* sum = &g[part * ELEMENTS * g_stride];
                for (int64_t first = begin; first < end; first += block) {
                    const int64_t length = std::min(block, end - first);
                    for (int64_t t = 0; t < length; t++) load_tiles(first + t, &d[t * in], &y[t * out]);
                    for (int e = 0; e < ELEMENTS; e++)
                        (first > begin ? multiply<true> : multiply<false>)(
                            &d[e * d_stride], 1, in, &y[e * y_stride], sum + e * g_stride, in, out, length);
                }
            }
        } else {
            float *d = shared.get(), *y = d + ELEMENTS * d_stride;
            for (int64_t first = 0; first < tiles; first += block) {
                const int64_t length = std::min(block, tiles - first);
                #pragma omp for
                for (int64_t t = 0; t < length; t++) load_tiles(first + t, &d[t * in], &y[t * out]);
                #pragma omp for
                for (int e = 0; e < ELEMENTS; e++)
                    (first ? multiply<true> : multiply<false>)(&d[e * d_stride], 1, in, &y[e * y_stride],
                                                               &g[e * g_stride], in, out, length);
            }
        }
        #pragma omp for collapse(2)
        for (int64_t o = 0; o < out; o += LANES)
            for (int64_t i = 0; i < in; i++) {
                Vector elements[ELEMENTS], weight[9];
                for (int e = 0; e < ELEMENTS; e++) {
                    elements[e] = load(&g[e * g_stride + i * out + o]);
                    for (int64_t part = 1; part < parts; part++)
                        elements[e] += load(&g[(part * ELEMENTS + e) * g_stride + i * out + o]);
                }
                transform<GTransposed, 6, 3>(elements, weight);
                for (int k = 0; k < 9; k++)
                    for (int64_t l = 0; l < LANES; l++) gradient[((o + l) * 9 + k) * in + i] = weight[k][l];
            }
    }
}
