"""Time an ONNX file with one execution provider of ONNX Runtime, and compare with its CPU.

    python scripts/gpu_onnx.py FILE PROVIDER SIDE

Prints one line of JSON: milliseconds (median), providers in use, share of equal best classes.
"""

from __future__ import annotations

import json
import statistics
import sys
import time

import numpy as np
import onnxruntime

RUNS = 50


def main(file: str, provider: str, side: int) -> None:
    """Measure and print."""
    image = np.random.default_rng(0).standard_normal((1, 3, side, side)).astype(np.float32)
    session = onnxruntime.InferenceSession(file, providers=[provider, "CPUExecutionProvider"])
    used = session.get_providers()
    if used[0] != provider:
        raise SystemExit(f"error: {provider} was not used, {used[0]} was")
    feed = {session.get_inputs()[0].name: image}
    for _ in range(3):
        (logits,) = session.run(None, feed)
    seconds = []
    for _ in range(RUNS):
        start = time.perf_counter()
        session.run(None, feed)
        seconds.append(time.perf_counter() - start)
    plain = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    (expected,) = plain.run(None, feed)
    equal = float((logits.argmax(1) == expected.argmax(1)).mean())
    median = 1e3 * statistics.median(seconds)
    print(json.dumps({"milliseconds": median, "providers": used, "equal best classes": equal}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
