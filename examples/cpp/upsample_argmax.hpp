// Label map from low-resolution logits: bilinear upsampling and argmax in one pass, without the
// full-size logits.  The C++17 counterpart of `cgrseg.ops.upsample_argmax`; needs nothing else.
//
// An upsampled logit is a weighted mean of a few positions ("taps") of the network's output.  Where
// one class is the best at all taps of a pixel, it is the best at the pixel, and nothing is
// computed.  Elsewhere, mostly along the borders of objects, only classes that can win are
// interpolated.
//
// Labels equal those of a float64 evaluation wherever the two best classes differ by more than
// 1e-5 (logits below about 30 in magnitude).  Of equal classes the smallest index wins.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <stdexcept>
#include <vector>

namespace cgrseg {

struct Size {
    int height;
    int width;
};

namespace detail {

struct Tap {
    int index;
    float weight;
};

// Taps of one output of a bilinear resize, PyTorch's `align_corners=False`.
inline std::vector<Tap> bilinear_taps(int source, int target, int output) {
    if (source == target) return {{output, 1.0F}};
    const double scale = static_cast<double>(source) / target;
    const double center = std::max(0.0, (output + 0.5) * scale - 0.5);
    const int low = std::min(static_cast<int>(center), source - 1);
    const double share = center - low;
    if (low + 1 == source || share == 0.0) return {{low, 1.0F}};
    return {{low, static_cast<float>(1.0 - share)}, {low + 1, static_cast<float>(share)}};
}

// Taps of every output of `source` -> `between`, cropped to `kept`, -> `target`, along one axis.
inline std::vector<std::vector<Tap>> axis_taps(int source, int between, int kept, int target) {
    std::vector<std::vector<Tap>> axis(static_cast<std::size_t>(target));
    for (int output = 0; output < target; ++output) {
        auto& taps = axis[static_cast<std::size_t>(output)];
        for (const Tap& outer : bilinear_taps(kept, target, output)) {
            for (const Tap& inner : bilinear_taps(source, between, outer.index)) {
                const auto same = std::find_if(taps.begin(), taps.end(), [&](const Tap& tap) {
                    return tap.index == inner.index;
                });
                const float weight = outer.weight * inner.weight;
                if (same == taps.end()) {
                    taps.push_back({inner.index, weight});
                } else {
                    same->weight += weight;
                }
            }
        }
    }
    return axis;
}

inline bool same_indices(const std::vector<Tap>& taps, const std::vector<Tap>& others) {
    return std::equal(taps.begin(), taps.end(), others.begin(), others.end(),
                      [](const Tap& a, const Tap& b) { return a.index == b.index; });
}

}  // namespace detail

// Best class of every pixel.
//
//   logits   output of the network for one image: (classes, grid.height, grid.width), contiguous.
//   input    size of the network's input, to which the logits are resized first.
//   crop     top left part of the input that holds the image; the rest is padding.
//   size     size of the image before it was resized for the network.
//
// Returns labels 0..classes-1, row by row.  Throws std::invalid_argument for sizes that do not fit
// together and for logits that are NaN or infinite.
inline std::vector<int> upsample_argmax(const float* logits, int classes, Size grid, Size input,
                                        Size crop, Size size) {
    for (const Size& each : {grid, input, crop, size}) {
        if (classes < 1 || each.height < 1 || each.width < 1) {
            throw std::invalid_argument("upsample_argmax: every size must be at least 1");
        }
    }
    if (crop.height > input.height || crop.width > input.width) {
        throw std::invalid_argument("upsample_argmax: the crop is larger than the input");
    }
    const auto depth = static_cast<std::size_t>(classes);
    const auto grid_width = static_cast<std::size_t>(grid.width);
    const std::size_t positions = static_cast<std::size_t>(grid.height) * grid_width;

    std::vector<float> values(positions * depth);  // classes innermost
    std::vector<int> winners(positions);
    for (std::size_t place = 0; place < positions; ++place) {
        float* here = values.data() + place * depth;
        for (std::size_t k = 0; k < depth; ++k) {
            here[k] = logits[k * positions + place];
            if (!std::isfinite(here[k])) {
                throw std::invalid_argument("upsample_argmax: a logit is NaN or infinite");
            }
        }
        winners[place] = static_cast<int>(std::max_element(here, here + depth) - here);
    }

    const auto rows = detail::axis_taps(grid.height, input.height, crop.height, size.height);
    const auto columns = detail::axis_taps(grid.width, input.width, crop.width, size.width);
    const auto place_of = [&](const detail::Tap& y, const detail::Tap& x) {
        return static_cast<std::size_t>(y.index) * grid_width + static_cast<std::size_t>(x.index);
    };

    // Classes that can win at pixels with these taps, in rising order.  The mean of the winners is
    // interpolated like a class, and the best class is nowhere below it: a class that is below it
    // at every tap cannot win.
    const auto find_candidates = [&](const std::vector<detail::Tap>& row,
                                     const std::vector<detail::Tap>& column) {
        std::vector<std::size_t> places;
        std::vector<int> seen;
        for (const auto& y : row) {
            for (const auto& x : column) {
                places.push_back(place_of(y, x));
                seen.push_back(winners[places.back()]);
            }
        }
        std::sort(seen.begin(), seen.end());
        seen.erase(std::unique(seen.begin(), seen.end()), seen.end());
        if (seen.size() == 1) return seen;
        std::vector<char> possible(depth, 0);
        for (const int winner : seen) possible[static_cast<std::size_t>(winner)] = 1;
        for (const std::size_t place : places) {
            const float* here = values.data() + place * depth;
            float mean = 0.0F;
            for (const int winner : seen) mean += here[winner];
            mean /= static_cast<float>(seen.size());
            for (std::size_t k = 0; k < depth; ++k) possible[k] |= here[k] >= mean;
        }
        std::vector<int> candidates;
        for (int k = 0; k < classes; ++k) {
            if (possible[static_cast<std::size_t>(k)]) candidates.push_back(k);
        }
        return candidates;
    };

    std::vector<std::vector<int>> candidates(columns.size());
    std::vector<int> labels;
    labels.reserve(rows.size() * columns.size());
    for (std::size_t i = 0; i < rows.size(); ++i) {
        const bool new_rows = i == 0 || !detail::same_indices(rows[i], rows[i - 1]);
        std::size_t first = 0;  // of the columns with the same taps
        for (std::size_t j = 0; j < columns.size(); ++j) {
            if (j > 0 && !detail::same_indices(columns[j], columns[j - 1])) first = j;
            if (new_rows && j == first) candidates[j] = find_candidates(rows[i], columns[j]);
            int label = candidates[first].front();
            if (candidates[first].size() > 1) {
                float best = -std::numeric_limits<float>::infinity();
                for (const int candidate : candidates[first]) {
                    float sum = 0.0F;
                    for (const auto& y : rows[i]) {
                        for (const auto& x : columns[j]) {
                            const float* here = values.data() + place_of(y, x) * depth;
                            sum += y.weight * x.weight * here[candidate];
                        }
                    }
                    if (sum > best) {
                        best = sum;
                        label = candidate;
                    }
                }
            }
            labels.push_back(label);
        }
    }
    return labels;
}

}  // namespace cgrseg
