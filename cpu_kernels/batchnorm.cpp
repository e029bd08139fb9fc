// Batch norm with what follows it, the sum with a residual image and the ReLU, in as few passes over memory as there
// can be: two forward, two backward.
//
// All images are rows of channels in memory, (count * height * width, channels): torch's channels_last. Channels are
// multiples of 16. Rows are summed in blocks of a fixed size, in float about a value near their mean, and the blocks in
// double: the sums are the same with any number of threads.
#include "vector.h"

struct Blocks {
    int64_t rows, channels, size = std::max<int64_t>(8, 4096 / channels);      // rows of a block: 16 KiB

    Blocks(int64_t rows, int64_t channels) : rows(rows), channels(channels) {}
    int64_t count() const { return (rows + size - 1) / size; }
    int64_t begin(int64_t block) const { return block * size; }
    int64_t end(int64_t block) const { return std::min(rows, (block + 1) * size); }
};

// a and b: the sums over the rows [begin, end) of the two values that `terms(offset)` gives for a vector of channels.
template <class Terms> INLINE void sum_rows(int64_t begin, int64_t end, int64_t channels, int64_t channel, Vector& a,
                                            Vector& b, const Terms& terms) {
    Vector sums[4][2] = {};         // additions that do not wait for each other
    int64_t row = begin;
    for (; row + 4 <= end; row += 4)
        UNROLLED (int i = 0; i < 4; i++) terms((row + i) * channels + channel, sums[i][0], sums[i][1]);
    for (; row < end; row++) terms(row * channels + channel, sums[0][0], sums[0][1]);
    a = (sums[0][0] + sums[1][0]) + (sums[2][0] + sums[3][0]);
    b = (sums[0][1] + sums[1][1]) + (sums[2][1] + sums[3][1]);
}

struct Normal {     // (x - mean) * scale + bias of a vector of channels
    Vector mean, scale, bias;

    INLINE Normal at(const float* mean, const float* inverse, const float* weight, const float* bias, int64_t channel) {
        return {load(mean + channel), load(inverse + channel) * load(weight + channel), load(bias + channel)};
    }
    Vector of(Vector x) const { return (x - mean) * scale + bias; }
};

// y = (x - mean) * inverse * weight + bias, + residual where there is one, not below zero with `relu`.
extern "C" void normalise(const float* x, const float* residual, const float* mean, const float* inverse,
                          const float* weight, const float* bias, float* y, int64_t rows, int64_t channels,
                          int64_t relu) {
    const Blocks blocks(rows, channels);
    const Vector low = all(relu ? 0 : -__builtin_inff());
    #pragma omp parallel for
    for (int64_t block = 0; block < blocks.count(); block++)
        for (int64_t channel = 0; channel < channels; channel += LANES) {
            const Normal normal = Normal::at(mean, inverse, weight, bias, channel);
            for (int64_t row = blocks.begin(block); row < blocks.end(block); row++) {
                const int64_t i = row * channels + channel;
                Vector value = normal.of(load(x + i));
                if (residual) value += load(residual + i);
                store(y + i, at_least(value, low));
            }
        }
}

// The mean of x and 1 / sqrt(its variance + eps); the running statistics, where there are any, move towards them.
extern "C" void statistics(const float* x, float* mean, float* inverse, float* running_mean, float* running_var,
                           int64_t rows, int64_t channels, double momentum, double eps) {
    const Blocks blocks(rows, channels);
    const int64_t count = blocks.count();
    const auto near = floats(count * channels), sums = floats(count * channels), squares = floats(count * channels);
    #pragma omp parallel
    {
        #pragma omp for
        for (int64_t block = 0; block < count; block++)
            for (int64_t channel = 0; channel < channels; channel += LANES) {
                const int64_t begin = blocks.begin(block), end = blocks.end(block), first = std::min<int64_t>(end - begin, 8);
                Vector middle{}, sum, square;
                for (int64_t i = 0; i < first; i++) middle += load(x + (begin + i) * channels + channel);
                middle *= 1.f / first;
                sum_rows(begin, end, channels, channel, sum, square, [&](int64_t i, Vector& a, Vector& b) {
                    const Vector away = load(x + i) - middle;
                    a += away;
                    b += away * away;
                });
                store(&near[block * channels + channel], middle);
                store(&sums[block * channels + channel], sum);
                store(&squares[block * channels + channel], square);
            }
        #pragma omp for
        for (int64_t channel = 0; channel < channels; channel++) {
            double total = 0, spread = 0;
            for (int64_t block = 0; block < count; block++)
                total += double(near[block * channels + channel]) * (blocks.end(block) - blocks.begin(block)) +
                         sums[block * channels + channel];
            const double middle = total / rows;
            for (int64_t block = 0; block < count; block++) {
                const double n = blocks.end(block) - blocks.begin(block), sum = sums[block * channels + channel];
                const double away = near[block * channels + channel] - middle;
                spread += squares[block * channels + channel] + 2 * away * sum + n * away * away;
            }
            const double variance = std::max(spread / rows, 0.);
            mean[channel] = middle;
            inverse[channel] = 1 / __builtin_sqrt(variance + eps);
            if (running_mean) {
                running_mean[channel] += momentum * (middle - running_mean[channel]);
                running_var[channel] += momentum * (variance * rows / (rows - 1) - running_var[channel]);
            }
        }
    }
}

// The gradients of x, of the residual (where there is one: `masked`, else null), of the weights and of the bias, from
// `grad`, that of normalise's y.
extern "C" void batchnorm_gradient(const float* grad, const float* x, const float* y, const float* mean,
                                   const float* inverse, const float* weight, const float* bias, float* grad_x,
                                   float* masked, float* grad_weight, float* grad_bias, int64_t rows, int64_t channels,
                                   int64_t relu) {
    const Blocks blocks(rows, channels);
    const int64_t count = blocks.count();
    const auto sums = floats(count * channels), products = floats(count * channels);
    const auto mean_grad = floats(channels), slope = floats(channels);
    #pragma omp parallel
    {
        #pragma omp for
        for (int64_t block = 0; block < count; block++)
            for (int64_t channel = 0; channel < channels; channel += LANES) {
                const Normal normal = Normal::at(mean, inverse, weight, bias, channel);
                Vector sum, product;
                sum_rows(blocks.begin(block), blocks.end(block), channels, channel, sum, product,
                         [&](int64_t i, Vector& a, Vector& b) {
                    const Vector value = load(x + i);
                    Vector change = load(grad + i);
                    // without a residual, y is computed again, which is faster than to read it
                    if (relu) change = (masked ? load(y + i) : normal.of(value)) <= Vector{} ? Vector{} : change;
                    if (masked) store(masked + i, change);
                    a += change;
                    b += change * (value - normal.mean);
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
            grad_weight[channel] = product * inverse[channel];
            mean_grad[channel] = sum / rows;
            slope[channel] = product / rows * inverse[channel] * inverse[channel];
        }
        #pragma omp for
        for (int64_t block = 0; block < count; block++)
            for (int64_t channel = 0; channel < channels; channel += LANES) {
                const Normal normal = Normal::at(mean, inverse, weight, bias, channel);
                const Vector middle = load(&mean_grad[channel]), steep = load(&slope[channel]);
                for (int64_t row = blocks.begin(block); row < blocks.end(block); row++) {
                    const int64_t i = row * channels + channel;
                    const Vector value = load(x + i);
                    Vector change = load((masked ? masked : grad) + i);
                    if (relu && !masked) change = normal.of(value) <= Vector{} ? Vector{} : change;
                    store(grad_x + i, (change - middle - (value - normal.mean) * steep) * normal.scale);
                }
            }
    }
}
