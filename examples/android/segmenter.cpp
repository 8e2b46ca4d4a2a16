// The native part of Segmenter.kt: labels from logits.

#include <jni.h>

#include <cstddef>
#include <exception>
#include <vector>

#include "../cpp/upsample_argmax.hpp"

extern "C" JNIEXPORT jintArray JNICALL
Java_Segmenter_upsampleArgmax(JNIEnv* env, jobject, jfloatArray logits, jintArray sizes) {
    jint n[9];
    env->GetIntArrayRegion(sizes, 0, 9, n);
    std::vector<float> values(static_cast<std::size_t>(env->GetArrayLength(logits)));
    env->GetFloatArrayRegion(logits, 0, static_cast<jsize>(values.size()), values.data());
    try {
        const std::vector<int> labels = cgrseg::upsample_argmax(
            values.data(), n[0], {n[1], n[2]}, {n[3], n[4]}, {n[5], n[6]}, {n[7], n[8]});
        jintArray found = env->NewIntArray(static_cast<jsize>(labels.size()));
        if (found != nullptr) {
            env->SetIntArrayRegion(found, 0, static_cast<jsize>(labels.size()), labels.data());
        }
        return found;
    } catch (const std::exception& error) {
        env->ThrowNew(env->FindClass("java/lang/IllegalStateException"), error.what());
        return nullptr;
    }
}
