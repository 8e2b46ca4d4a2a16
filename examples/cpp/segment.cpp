// Label map of one image by an exported network in OpenVINO.
//
//   segment MODEL IMAGE.ppm LABELS.pgm
//
// MODEL is the .xml or .onnx file of `cgrseg export --size HEIGHTxWIDTH --input pixels`: it takes
// 8-bit RGB, normalizes it itself, and gives logits.

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <iostream>
#include <memory>
#include <stdexcept>
#include <string>

#include <openvino/openvino.hpp>

#include "image.hpp"
#include "upsample_argmax.hpp"

namespace {

// Padding: whole numbers next to the mean of the training images, RGB.
constexpr std::array<std::uint8_t, 3> padding{124, 116, 104};

// Checks that a model takes one size of 8-bit RGB and gives logits, and returns that size.
cgrseg::Size input_size(const ov::Model& model, const std::string& path) {
    const auto takes = model.input().get_partial_shape();
    const auto gives = model.output().get_partial_shape();
    const bool pixels = model.input().get_element_type() == ov::element::u8 && takes.size() == 4 &&
                        takes[1].is_static() && takes[2].is_static() && takes[3] == 3;
    const bool logits = model.output().get_element_type() == ov::element::f32 && gives.size() == 4;
    if (!pixels || !logits) {
        throw std::runtime_error(path + ": expected a file of: cgrseg export CHECKPOINT --size "
                                        "HEIGHTxWIDTH --input pixels");
    }
    return {static_cast<int>(takes[1].get_length()), static_cast<int>(takes[2].get_length())};
}

void segment(const std::string& model_path, const std::string& image_path,
             const std::string& labels_path) {
    ov::Core core;
    const std::shared_ptr<ov::Model> model = core.read_model(model_path);
    const cgrseg::Size input = input_size(*model, model_path);
    const auto height = static_cast<std::size_t>(input.height);
    const auto width = static_cast<std::size_t>(input.width);
    model->reshape(ov::Shape{1, height, width, 3});  // fixes a free batch size
    ov::CompiledModel compiled = core.compile_model(
        model, "CPU", ov::hint::performance_mode(ov::hint::PerformanceMode::LATENCY),
        ov::hint::inference_precision(ov::element::f32));
    ov::InferRequest request = compiled.create_infer_request();

    const cgrseg::Image image = cgrseg::read_ppm(image_path);
    const cgrseg::Size fitted = cgrseg::fitted_size(image.size, input);
    const cgrseg::Image resized = cgrseg::resize(image, fitted);
    const auto row = std::size_t{3} * static_cast<std::size_t>(fitted.width);
    auto* target = request.get_input_tensor().data<std::uint8_t>();
    for (std::size_t pixel = 0; pixel < height * width; ++pixel) {
        std::copy(padding.begin(), padding.end(), target + 3 * pixel);
    }
    for (std::size_t y = 0; y < static_cast<std::size_t>(fitted.height); ++y) {
        std::copy_n(resized.pixels.data() + y * row, row, target + y * 3 * width);
    }

    request.infer();
    const ov::Tensor logits = request.get_output_tensor();  // (1, classes, rows, columns)
    const ov::Shape shape = logits.get_shape();
    const auto classes = static_cast<int>(shape[1]);
    const cgrseg::Size grid{static_cast<int>(shape[2]), static_cast<int>(shape[3])};
    const auto labels = cgrseg::upsample_argmax(logits.data<const float>(), classes, grid, input,
                                                fitted, image.size);
    cgrseg::write_pgm(labels_path, labels, image.size, classes);
}

}  // namespace

int main(int count, char** words) {
    if (count != 4) {
        std::cerr << "usage: segment MODEL IMAGE.ppm LABELS.pgm\n";
        return 2;
    }
    try {
        segment(words[1], words[2], words[3]);
    } catch (const std::exception& error) {
        std::cerr << "error: " << error.what() << '\n';
        return 2;
    }
    return 0;
}
