# %% [markdown]
# # From a checkpoint to a device
#
# Export a checkpoint for ONNX Runtime and OpenVINO, check that the exports give the same label
# maps, and compare their latency. It needs `pip install "cgrseg[export]"`. Run it with
# `python docs/tutorials/to_a_device.py CHECKPOINT IMAGE FOLDER`, or open it as a notebook
# (Jupytext, VS Code and PyCharm read this form).

# %%
import sys
import time
from pathlib import Path

import numpy as np

import cgrseg
from cgrseg.deploy.export import export

checkpoint, image, folder = (Path(argument) for argument in sys.argv[1:4])
folder.mkdir(parents=True, exist_ok=True)

# %% [markdown]
# ## 1. The result to reproduce
#
# The network in float32 on the CPU gives the reference label map.

# %%
reference = cgrseg.Predictor.from_pretrained(checkpoint, device="cpu")
expected = reference(image).labels
print(f"{expected.shape[1]}x{expected.shape[0]} pixels, classes {np.unique(expected).tolist()}")

# %% [markdown]
# ## 2. Export
#
# Each file is opened in its own runtime and compared with the float32 network before it is kept.
# Without `sizes` an export takes images of any size.

# %%
exports = {}
for kind, suffix in (("onnx", ".onnx"), ("openvino", ".xml")):
    made = export(checkpoint, kind, folder / f"network{suffix}", overwrite=True)
    exports[kind] = made.path
    print(f"{kind}: {made.megabytes:.1f} MB, made and checked in {made.seconds:.0f} s")

# %% [markdown]
# ## 3. Compare label maps and latency
#
# An export is used like a checkpoint: the same `Predictor`, the same image sizes, the same result.

# %%
for name, source in {"pytorch": checkpoint, **exports}.items():
    predictor = cgrseg.Predictor.from_pretrained(source, device="cpu")
    labels = predictor(image).labels  # the first call prepares the image size
    begun = time.perf_counter()
    predictor(image)
    latency = time.perf_counter() - begun
    print(f"{name}: {1000 * latency:.0f} ms, {(labels == expected).mean():.3%} equal labels")

# %% [markdown]
# ## 4. Smaller and faster
#
# `cgrseg export CHECKPOINT --format openvino --precision int8` quantizes with a calibration set
# and reports mIoU before and after; [Deployment](../deployment.md) has all formats.
