// The C++ part of Segmenter.swift.

#include "segmenter.h"

#include <algorithm>
#include <exception>
#include <vector>

#include "../cpp/upsample_argmax.hpp"

bool upsample_argmax(const float* logits, const int32_t* n, int32_t* labels) {
    try {
        const std::vector<int> found = cgrseg::upsample_argmax(
            logits, n[0], {n[1], n[2]}, {n[3], n[4]}, {n[5], n[6]}, {n[7], n[8]});
        std::copy(found.begin(), found.end(), labels);
        return true;
    } catch (const std::exception&) {
        return false;
    }
}
