// Imported by the bridging header: labels from logits, see segmenter.cpp.

#include <stdbool.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C"
#endif
bool upsample_argmax(const float* logits, const int32_t* sizes, int32_t* labels);
