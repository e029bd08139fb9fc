// Batch norm, sum with a residual and ReLU, in as few passes over memory as possible: two forward, two backward.
//
// An image batch is (rows, channels) in memory, rows = count * height * width: torch's channels_last. The number of
// channels is a multiple of 16. Rows are summed in blocks of a fixed size: within a block in float, relative to a value
// near the mean, and over the blocks in double. So the sums are the same for any number of threads.
#include "vector.h"

struct Blocks {
    int64_t rows, channels, size = std::max<int64_t>(8, 4096 / channels);      // rows of a block: 16 KiB

    Blocks(int64_t rows, int64_t channels) : rows(rows), channels(channels) {}
    int64_t count() const { return (rows + size - 1) / size; }
    int64_t begin(int64_t block) const { return block * size; }
    int64_t end(int64_t block) const { return std::min(rows, (block + 1) * size); }
    double length(int64_t block) const { return end(block) - begin(block); }
};

// Sums of two values over the rows [begin, end): terms(offset, a, b) adds those of one vector of channels to a and b.
template <class Terms> INLINE void sum_rows(int64_t begin, int64_t end, int64_t channels, int64_t channel, Vector& a,
                                            Vector& b, const Terms& terms) {
    Vector sums[4][2] = {};         // four independent sums, so that additions do not wait for each other
    int64_t row = begin;
    for (; row + 4 <= end; row += 4)
        UNROLLED (int i = 0; i < 4; i++) terms((row + i) * channels + channel, sums[i][0], sums[i][1]);
    for (; row < end; row++) terms(row * channels + channel, sums[0][0], sums[0][1]);
    a = (sums[0][0] + sums[1][0]) + (sums[2][0] + sums[3][0]);
    b = (sums[0][1] + sums[1][1]) + (sums[2][1] + sums[3][1]);
}

struct Normaliser {     // (x - mean) * scale + bias for a vector of channels
    Vector mean, scale, bias;

    INLINE Normaliser at(const float* mean, const float* inverse_std, const float* weight, const float* bias,
                         int64_t channel) {
        return {load(mean + channel), load(inverse_std + channel) * load(weight + channel), load(bias + channel)};
    }
    Vector of(Vector x) const { return (x - mean) * scale + bias; }
};

// y = (x - mean) * inverse_std * weight + bias, plus residual unless it is null, then a ReLU with `relu`.
extern "C" void normalise(const float* x, const float* residual, const float* mean, const float* inverse_std,
                          const float* weight, const float* bias, float* y, int64_t rows, int64_t channels,
                          int64_t relu) {
    const Blocks blocks(rows, channels);
    const Vector lowest = all(relu ? 0 : -__builtin_inff());
    #pragma omp parallel for
    for (int64_t block = 0; block < blocks.count(); block++)
        for (int64_t channel = 0; channel < channels; channel += LANES) {
            const Normaliser normaliser = Normaliser::at(mean, inverse_std, weight, bias, channel);
            for (int64_t row = blocks.begin(block); row < blocks.end(block); row++) {
                const int64_t i = row * channels + channel;
                Vector value = normaliser.of(load(x + i));
                if (residual) value += load(residual + i);
                store(y + i, at_least(value, lowest));
            }
        }
}

// mean of x, inverse_std = 1 / sqrt(variance + eps), and the running statistics unless they are null.
extern "C" void statistics(const float* x, float* mean, float* inverse_std, float* running_mean, float* running_var,
                           int64_t rows, int64_t channels, double momentum, double eps) {
    const Blocks blocks(rows, channels);
    const int64_t count = blocks.count();
    // Of each block: a value near its mean, and the sums of x - value and of its square.
    const auto centers = floats(count * channels), sums = floats(count * channels), squares = floats(count * channels);
    #pragma omp parallel
    {
        #pragma omp for
        for (int64_t block = 0; block < count; block++)
            for (int64_t channel = 0; channel < channels; channel += LANES) {
                const int64_t begin = blocks.begin(block), end = blocks.end(block);
                const int64_t first_rows = std::min<int64_t>(end - begin, 8);
                Vector center{}, sum, square;
                for (int64_t i = 0; i < first_rows; i++) center += load(x + (begin + i) * channels + channel);
                center *= 1.f / first_rows;
                sum_rows(begin, end, channels, channel, sum, square, [&](int64_t i, Vector& a, Vector& b) {
                    const Vector difference = load(x + i) - center;
                    a += difference;
                    b += difference * difference;
                });
                store(&centers[block * channels + channel], center);
                store(&sums[block * channels + channel], sum);
                store(&squares[block * channels + channel], square);
            }
        #pragma omp for
        for (int64_t channel = 0; channel < channels; channel++) {
            double total = 0, deviation = 0;
            for (int64_t block = 0; block < count; block++)
                total += double(centers[block * channels + channel]) * blocks.length(block) +
                         sums[block * channels + channel];
            const double average = total / rows;
            for (int64_t block = 0; block < count; block++) {
                const double sum = sums[block * channels + channel];
                const double difference = centers[block * channels + channel] - average;
                deviation += squares[block * channels + channel] + 2 * difference * sum +
                             blocks.length(block) * difference * difference;
            }
            const double variance = std::max(deviation / rows, 0.);
            mean[channel] = average;
            inverse_std[channel] = 1 / __builtin_sqrt(variance + eps);
            if (running_mean) {
                running_mean[channel] += momentum * (average - running_mean[channel]);
                running_var[channel] += momentum * (variance * rows / (rows - 1) - running_var[channel]);
            }
        }
    }
}

// The gradients of x, weight, bias and residual, from `grad`, that of y = normalise(x). grad_residual is null without a
// residual or without a ReLU.
extern "C" void batchnorm_gradient(const float* grad, const float* x, const float* y, const float* mean,
                                   const float* inverse_std, const float* weight, const float* bias, float* grad_x,
                                   float* grad_residual, float* grad_weight, float* grad_bias, int64_t rows,
                                   int64_t channels, int64_t relu) {
    const Blocks blocks(rows, channels);
    const int64_t count = blocks.count();
    const auto sums = floats(count * channels), products = floats(count * channels);
    const auto mean_grad = floats(channels), slope = floats(channels);
    #pragma omp parallel
    {
        #pragma omp for
        for (int64_t block = 0; block < count; block++)
            for (int64_t channel = 0; channel < channels; channel += LANES) {
                const Normaliser normaliser = Normaliser::at(mean, inverse_std, weight, bias, channel);
                Vector sum, product;
                sum_rows(blocks.begin(block), blocks.end(block), channels, channel, sum, product,
                         [&](int64_t i, Vector& a, Vector& b) {
                    const Vector value = load(x + i);
                    Vector gradient = load(grad + i);
                    // Without a residual, computing y again is faster than reading it.
                    if (relu) {
                        const Vector output = grad_residual ? load(y + i) : normaliser.of(value);
                        gradient = output <= Vector{} ? Vector{} : gradient;
                    }
                    if (grad_residual) store(grad_residual + i, gradient);
                    a += gradient;
                    b += gradient * (value - normaliser.mean);
                });
                store(&sums[block * channels + channel], sum);
                store(&products[block * channels + channel], product);
            }
        #pragma omp for
        for (int64_t channel = 0; channel < channels; channel++) {
            double sum = 0, product = 0;
            for (int64_t block = 0; block < count; block++) {
                sum += sums[block * channels + channel];
                product += products[block * channels + channel];
            }
            grad_bias[channel] = sum;
            grad_weight[channel] = product * inverse_std[channel];
            mean_grad[channel] = sum / rows;
            slope[channel] = product / rows * inverse_std[channel] * inverse_std[channel];
        }
        #pragma omp for
        for (int64_t block = 0; block < count; block++)
            for (int64_t channel = 0; channel < channels; channel += LANES) {
                const Normaliser normaliser = Normaliser::at(mean, inverse_std, weight, bias, channel);
                const Vector center = load(&mean_grad[channel]), factor = load(&slope[channel]);
                for (int64_t row = blocks.begin(block); row < blocks.end(block); row++) {
                    const int64_t i = row * channels + channel;
                    const Vector value = load(x + i);
                    Vector gradient = load((grad_residual ? grad_residual : grad) + i);
                    if (relu && !grad_residual) gradient = normaliser.of(value) <= Vector{} ? Vector{} : gradient;
                    store(grad_x + i, (gradient - center - (value - normaliser.mean) * factor) * normaliser.scale);
                }
            }
    }
}
