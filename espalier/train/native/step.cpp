// Runs the operations of a graph, compiled to a list, on a batch: each thread takes a chunk of LANES images at a time
// through all of them, so that maps stay near.
#include <atomic>
#include <cmath>
#include <memory>
#include <thread>

#include "maps.h"
#include "weight_gradient.h"

namespace {

enum Kind : int64_t {
    CONVOLVE, WEIGHT_GRADIENT, BIAS_GRADIENT, MAX_POOL, MAX_POOL_GRADIENT, AVERAGE_POOL, AVERAGE_POOL_GRADIENT, COMBINE,
    SPREAD, CONCAT
};

struct Operation {
    Kind kind;
    int64_t source, second, mask, target;  // maps; -1 for none
    int64_t mask_high;                     // the largest word of the mask that lets a gradient pass
    int64_t first;                         // channel of the source to begin with
    Window window;
    int64_t pad_y, pad_x;                  // of the window, at the top left
    int64_t turned;                        // BP: weights with the roles of channels swapped, taps in reverse
    int64_t weights, bias, bias_shift;     // places among the parameters; -1 for no bias
    Pool pool;
    Rounding rounding;
    int64_t same;                          // no rounding is due
    int64_t shift, second_shift;           // to the left, before adding
    int64_t reciprocal;                    // of a mean
};

struct Program {
    const Map* maps;
    const Operation* operations;
    int64_t map_count, images, chunks;
    int64_t arena_sizes[2];
    int16_t* kept;       // arena 0, one for each chunk: what the forward pass leaves for the backward pass
    int16_t* passing;    // arena 1, one for each thread
    int64_t* magnitudes; // [chunk][map]: bounds
};

std::vector<int16_t> words(const double* weights, int64_t count) { return {weights, weights + count}; }

// Weights [group][output][channel][tap] as those of the convolution that is the gradient of theirs. Some outputs at a
// time, because they lie side by side in what is read, and far apart in what is written.
std::vector<int16_t> turned(const Window& w, const double* weights) {
    const int64_t outputs = w.outputs / w.groups, channels = w.channels / w.groups, taps = w.kernel_y * w.kernel_x;
    std::vector<int16_t> found(w.weights());
    for (int64_t g = 0; g < w.groups; g++)
        for (int64_t first = 0; first < outputs; first += 16)
            for (int64_t c = 0; c < channels; c++)
                for (int64_t o = first; o < std::min(outputs, first + 16); o++)
                    for (int64_t t = 0; t < taps; t++)
                        found[((g * outputs + o) * channels + c) * taps + t] =
                            weights[((g * channels + c) * outputs + o) * taps + taps - 1 - t];
    return found;
}

// What the chunks share of one operation.
struct Ready {
    std::unique_ptr<Convolution> convolution;
    std::unique_ptr<Gradients> gradients;
};

// One run over some of the operations.
class Run {
    const Program& program;
    const Operation *begin, *end;
    std::vector<Ready> ready;
    const double *parameters, *live;

public:
    Run(const Program& program, int64_t first, int64_t last, const double* parameters, const double* live)
        : program(program), begin(program.operations + first), end(program.operations + last),
          ready(last - first), parameters(parameters), live(live) {
        for (const Operation* op = begin; op < end; op++) {
            Ready& made = ready[op - begin];
            if (op->kind == CONVOLVE) made.convolution = convolution(*op);
            if (op->kind == WEIGHT_GRADIENT)
                made.gradients = std::make_unique<Gradients>(op->window, strides(op->source), live + op->weights);
        }
    }

    // The memory of a thread. ``sums``: of the gradients, at the places of their parameters.
    struct Worker {
        int16_t* passing;
        double* sums;
        std::vector<double> own;
        std::vector<int16_t> scratch;
    };

    // The first adds to ``sums``, the others to sums of their own.
    Worker worker(int64_t thread, double* sums) const {
        Worker found{program.passing + thread * program.arena_sizes[1], sums, {}, {}};
        if (sums && thread) {
            int64_t size = 0;
            each_gradient([&](int64_t first, int64_t count) { size = std::max(size, first + count); });
            found.own.resize(size);
            found.sums = found.own.data();
        }
        return found;
    }

    // How many lanes of a chunk have an image; the others are zero throughout.
    int64_t images(int64_t chunk) const { return std::min<int64_t>(LANES, program.images - chunk * LANES); }

    void take(Worker& worker, int64_t chunk, int64_t map, const int16_t* in) const {
        const Map& to = program.maps[map];
        const View view = at(worker, chunk, map);
        const int64_t first = chunk * LANES, count = images(chunk);
        Words most{};
        const int16_t* from = in + first * to.size();
        for (int64_t c = 0; c < to.channels; c++)
            for (int64_t y = 0; y < to.height; y++, from += to.width) {
                for (int64_t l = 0; l < LANES; l++)
                    for (int64_t x = 0; x < to.width; x++)
                        view.at(c, y, x)[l] = l < count ? from[l * to.size() + x] : int16_t(0);
                for (int64_t x = 0; x < to.width; x++) most = larger(most, load(view.at(c, y, x)));
            }
        magnitude(chunk, map) = bound(most);
    }

    void give(Worker& worker, int64_t chunk, int64_t map, int16_t* out) const {
        const Map& from = program.maps[map];
        const View view = at(worker, chunk, map);
        const int64_t first = chunk * LANES, count = images(chunk);
        for (int64_t l = 0; l < count; l++) {
            int16_t* to = out + (first + l) * from.size();
            for (int64_t c = 0; c < from.channels; c++)
                for (int64_t y = 0; y < from.height; y++)
                    for (int64_t x = 0; x < from.width; x++) *to++ = view.at(c, y, x)[l];
        }
    }

    void operator()(Worker& worker, int64_t chunk) const {
        for (const Operation* op = begin; op < end; op++) step(*op, ready[op - begin], worker, chunk);
    }

    // Adds the sums of the other workers to those of the first.
    void collect(const std::vector<Worker>& workers) const {
        each_gradient([&](int64_t first, int64_t count) {
            for (size_t t = 1; t < workers.size(); t++)
                for (int64_t k = first; k < first + count; k++) workers[0].sums[k] += workers[t].sums[k];
        });
    }

private:
    // Calls work(first, count) with the places of each parameter whose gradient is computed.
    template <class Work>
    void each_gradient(Work work) const {
        for (const Operation* op = begin; op < end; op++) {
            if (op->kind == WEIGHT_GRADIENT) work(op->weights, op->window.weights());
            if (op->kind == BIAS_GRADIENT) work(op->bias, program.maps[op->source].channels);
        }
    }

    View strides(int64_t map) const { return program.maps[map].view(nullptr); }

    View at(const Worker& worker, int64_t chunk, int64_t map) const {
        if (map < 0) return {};
        const Map& found = program.maps[map];
        return found.view(found.arena ? worker.passing : program.kept + chunk * program.arena_sizes[0]);
    }

    int64_t& magnitude(int64_t chunk, int64_t map) const {
        return program.magnitudes[chunk * program.map_count + program.maps[map].owner];
    }

    std::unique_ptr<Convolution> convolution(const Operation& op) const {
        const Window& w = op.window;
        const double* given = parameters + op.weights;
        const std::vector<int16_t> weights = op.turned ? turned(w, given) : words(given, w.weights());
        std::vector<int64_t> bias(w.outputs);
        if (op.bias >= 0)
            for (int64_t o = 0; o < w.outputs; o++)
                bias[o] = static_cast<int64_t>(parameters[op.bias + o]) << op.bias_shift;
        return std::make_unique<Convolution>(w, strides(op.source), weights.data(), std::move(bias));
    }

    // What was added to all lanes is taken from those without an image.
    void clear(const Map& map, const View& view, int64_t chunk) const {
        for (int64_t c = 0; c < map.channels; c++)
            for (int64_t y = 0; y < map.height; y++)
                for (int64_t x = 0; x < map.width; x++)
                    std::fill(view.at(c, y, x) + images(chunk), view.at(c, y, x) + LANES, int16_t(0));
    }

    void step(const Operation& op, const Ready& made, Worker& worker, int64_t chunk) const {
        const Map& map = program.maps[op.source];
        const View source = at(worker, chunk, op.source).from(op.first), second = at(worker, chunk, op.second);
        const View origin{source.at(0, -op.pad_y, -op.pad_x), source.plane, source.row};
        const View target = at(worker, chunk, op.target), mask = at(worker, chunk, op.mask);
        const int64_t most = magnitude(chunk, op.source);
        Words seen{};
        const auto mask_high = static_cast<int16_t>(op.mask_high);
        const Sink sink{target, mask, mask_high, &seen};
        switch (op.kind) {
            case CONVOLVE:
                (*made.convolution)({op.window, origin, target, mask, mask_high, nullptr, op.rounding, &seen}, most);
                if (op.bias >= 0 && images(chunk) < LANES) clear(program.maps[op.target], target, chunk);
                break;
            case WEIGHT_GRADIENT:
                return add_weight_gradients(op.window, *made.gradients, origin, second, most,
                                            magnitude(chunk, op.second), worker.scratch, worker.sums + op.weights);
            case BIAS_GRADIENT: return add_channel_sums(map, source, live + op.bias, worker.sums + op.bias);
            case MAX_POOL: max_pool(op.pool, map, source, program.maps[op.target], op.rounding, op.same, sink); break;
            case MAX_POOL_GRADIENT:  // source: the gradient, second: what was pooled
                max_pool_gradient(op.pool, program.maps[op.second], second, map, source, op.rounding, op.same, sink);
                break;
            case AVERAGE_POOL:
                average_pool(op.pool, map, source, program.maps[op.target], op.reciprocal, op.rounding, sink);
                break;
            case AVERAGE_POOL_GRADIENT:
                average_pool_gradient(op.pool, program.maps[op.target], map, source, op.reciprocal, op.rounding, sink);
                break;
            case COMBINE:
                combine(program.maps[op.target], source, op.shift, second, op.second_shift, op.rounding, op.same, sink);
                break;
            case CONCAT:
                concat(map, source, op.shift, program.maps[op.second], second, op.second_shift, op.rounding, op.same,
                       sink);
                break;
            case SPREAD: spread(map, source, op.window.stride_y, op.window.stride_x, sink); break;
        }
        magnitude(chunk, op.target) = bound(seen);
    }
};

}  // namespace

extern "C" {

int64_t lanes() { return LANES; }

// Runs operations first..last-1. ``in`` [image][channel][y][x] fills map ``in_map`` (-1: none) first; map ``out_map``
// (-1: none) goes to ``out`` in the end. To ``sums`` are added the gradients of the parameters that these operations compute,
// where ``live`` is not 0.
void lanes_run(const Program* program, int64_t first, int64_t last, const double* parameters, const double* live,
               int64_t in_map, const int16_t* in, int64_t out_map, int16_t* out, double* sums, int64_t threads) {
    const Run run(*program, first, last, parameters, live);
    std::vector<Run::Worker> workers;
    for (int64_t t = 0; t < std::min(threads, program->chunks); t++) workers.push_back(run.worker(t, sums));
    std::atomic<int64_t> next{0};
    auto work = [&](Run::Worker& worker) {
        for (int64_t chunk; (chunk = next++) < program->chunks;) {
            if (in_map >= 0) run.take(worker, chunk, in_map, in);
            run(worker, chunk);
            if (out_map >= 0) run.give(worker, chunk, out_map, out);
        }
    };
    std::vector<std::thread> helpers;
    for (size_t t = 1; t < workers.size(); t++) helpers.emplace_back(work, std::ref(workers[t]));
    work(workers[0]);
    for (auto& helper : helpers) helper.join();
    if (sums) run.collect(workers);
}

// How the weights of one parameter move: numerics/update.py, BufferedSgd. Whole numbers in double, all exact.
struct Rule {
    int64_t count;
    double scale, gradient_low, gradient_high;  // from sums to gradient words
    double rate, momentum, decay;
    double lasting, sudden;                     // numerics/compensation.py; 1 and 0 without
    double narrowing, low, high, wide_low, wide_high;  // from masters to weights; the ends of both
};

// An update of weights, masters and momenta by sums of gradients, parameter by parameter.
void lanes_update(const Rule* rules, int64_t parameters, const double* sums, const double* live, double* weight,
                  double* master, double* velocity) {
    auto rounded = [](double x) { return std::floor(x + 0.5); };
    int64_t k = 0;
    for (const Rule* rule = rules; rule < rules + parameters; rule++) {
        const Rule r = *rule;
        for (const int64_t end = k + r.count; k < end; k++) {
            const double g = std::clamp(rounded(sums[k] * r.scale), r.gradient_low, r.gradient_high) * live[k];
            const double spike = rounded(g * r.rate) + rounded(master[k] * r.decay);
            velocity[k] = std::clamp(rounded(velocity[k] * r.momentum) + spike, r.wide_low, r.wide_high);
            const double step = rounded(velocity[k] * r.lasting) + rounded(spike * r.sudden);
            master[k] = std::clamp(master[k] - step, r.wide_low, r.wide_high);
            weight[k] = std::clamp(rounded(master[k] * r.narrowing), r.low, r.high);
        }
    }
}

// Crops of H × W from images (…, C, H + 2·pad, W + 2·pad), mirrored where moves[image][2]: [image][channel][y][x].
void lanes_crop(const int16_t* images, const int64_t* index, const int64_t* moves, int64_t count, int64_t channels,
                int64_t height, int64_t width, int64_t pad, int16_t* out) {
    const int64_t row = width + 2 * pad, plane = (height + 2 * pad) * row;
    for (int64_t n = 0; n < count; n++)
        for (int64_t c = 0; c < channels; c++)
            for (int64_t y = 0; y < height; y++, out += width) {
                const int64_t* move = moves + 3 * n;
                const int16_t* from = images + (index[n] * channels + c) * plane + (y + move[0]) * row + move[1];
                if (move[2]) std::reverse_copy(from, from + width, out);
                else std::copy(from, from + width, out);
            }
}
}
