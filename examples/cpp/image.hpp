// Images in memory and as PPM and PGM files, and the resize of `cgrseg predict`.

#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <limits>
#include <stdexcept>
#include <string>
#include <system_error>
#include <vector>

#include "upsample_argmax.hpp"

namespace cgrseg {

// 8-bit RGB, row by row: three bytes per pixel.
struct Image {
    Size size;
    std::vector<std::uint8_t> pixels;
};

// Reads a binary PPM file (P6) with 8 bits per value.  Throws std::runtime_error.
inline Image read_ppm(const std::string& path) {
    std::ifstream file(path, std::ios::binary | std::ios::ate);
    if (!file) throw std::runtime_error(path + ": there is no such file, or it cannot be read");
    const auto length = static_cast<std::uint64_t>(file.tellg());
    file.seekg(0);
    std::string magic(2, '\0');
    file.read(magic.data(), 2);
    int width = 0, height = 0, largest = 0;
    for (int* number : {&width, &height, &largest}) {
        while ((file >> std::ws).peek() == '#') {
            file.ignore(std::numeric_limits<std::streamsize>::max(), '\n');
        }
        file >> *number;
    }
    file.get();  // one byte of white space
    constexpr int longest = 1 << 15;
    if (!file || magic != "P6" || largest != 255 || std::min(width, height) < 1 ||
        std::max(width, height) > longest) {
        throw std::runtime_error(path + ": expected a binary PPM file (P6, 8 bits) of at most " +
                                 std::to_string(longest) + " pixels a side");
    }
    const auto bytes = std::uint64_t{3} * static_cast<std::uint64_t>(height) *
                       static_cast<std::uint64_t>(width);
    if (length < bytes) throw std::runtime_error(path + ": the file is cut short");
    Image image{{height, width}, {}};
    image.pixels.resize(static_cast<std::size_t>(bytes));
    file.read(reinterpret_cast<char*>(image.pixels.data()),
              static_cast<std::streamsize>(image.pixels.size()));
    if (!file) throw std::runtime_error(path + ": the file is cut short");
    return image;
}

// Writes a label map as a binary PGM file (P5): the value of a pixel is its class.
// Two bytes per pixel, high byte first, where there are more than 256 classes.
inline void write_pgm(const std::string& path, const std::vector<int>& labels, Size size,
                      int classes) {
    const bool wide = classes > 256;
    std::string content = "P5\n" + std::to_string(size.width) + " " +
                          std::to_string(size.height) + (wide ? "\n65535\n" : "\n255\n");
    for (const int label : labels) {
        if (wide) content.push_back(static_cast<char>(label >> 8));
        content.push_back(static_cast<char>(label & 255));
    }
    const std::string partial = path + ".partial";  // a file of that name stays whole until then
    std::ofstream file(partial, std::ios::binary);
    file.write(content.data(), static_cast<std::streamsize>(content.size()));
    file.close();
    std::error_code problem;
    if (file) std::filesystem::rename(partial, path, problem);
    if (!file || problem) {
        std::filesystem::remove(partial, problem);
        throw std::runtime_error(path + ": cannot be written");
    }
}

// Size of an image within the network's input, its ratio kept, rounded as `cgrseg predict` does.
inline Size fitted_size(Size image, Size input) {
    const auto rounded = [](double side) { return std::max(1, static_cast<int>(side + 0.5)); };
    const auto [small, large] = std::minmax(image.height, image.width);
    const double fill = std::min(static_cast<double>(input.height) / image.height,
                                 static_cast<double>(input.width) / image.width);
    const double factor = std::min(static_cast<double>(rounded(large * fill)) / large,
                                   static_cast<double>(rounded(small * fill)) / small);
    return {rounded(image.height * factor), rounded(image.width * factor)};
}

namespace detail {

// Two neighbors of an output along one axis and their weights in 1/2048.
struct Neighbors {
    std::array<std::size_t, 2> index;
    std::array<int, 2> weight;
};

inline std::vector<Neighbors> neighbors(int source, int target) {
    const double scale = 1.0 / (static_cast<double>(target) / source);
    std::vector<Neighbors> axis;
    for (int output = 0; output < target; ++output) {
        const auto center = static_cast<float>((output + 0.5) * scale - 0.5);
        const int low = static_cast<int>(std::floor(center));
        const float share = center - static_cast<float>(low);
        const auto inside = [&](int index) {
            return static_cast<std::size_t>(std::clamp(index, 0, source - 1));
        };
        const auto weight = [](float value) { return static_cast<int>(std::lrint(value * 2048)); };
        axis.push_back({{inside(low), inside(low + 1)}, {weight(1 - share), weight(share)}});
    }
    return axis;
}

}  // namespace detail

// Resizes bilinearly in whole numbers, to the same values as OpenCV's INTER_LINEAR on x86-64.
inline Image resize(const Image& image, Size size) {
    const auto columns = detail::neighbors(image.size.width, size.width);
    const auto stride = std::size_t{3} * static_cast<std::size_t>(image.size.width);
    Image resized{size, {}};
    resized.pixels.reserve(std::size_t{3} * static_cast<std::size_t>(size.height) *
                           columns.size());
    for (const auto& row : detail::neighbors(image.size.height, size.height)) {
        for (const auto& column : columns) {
            for (std::size_t channel = 0; channel < 3; ++channel) {
                int total = 2;
                for (std::size_t y : {0, 1}) {
                    const std::uint8_t* line = image.pixels.data() + row.index[y] * stride;
                    const int sum = line[3 * column.index[0] + channel] * column.weight[0] +
                                    line[3 * column.index[1] + channel] * column.weight[1];
                    total += (row.weight[y] * (sum >> 4)) >> 16;
                }
                resized.pixels.push_back(static_cast<std::uint8_t>(total >> 2));
            }
        }
    }
    return resized;
}

}  // namespace cgrseg
