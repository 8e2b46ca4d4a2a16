"""Regenerate the golden outputs of timm's own EfficientFormerV2.

The pretrained backbones that people have are files of two kinds: the authors' own and
timm's.  timm renamed every layer, so `cgrseg.models.weights` carries a name mapping, and a
mapping can be wrong in ways that no shape check sees.  Two files pin it:

* `tests/golden/timm_keys.json`: every state-dict entry of timm's four models;
* `tests/golden/timm_features.npz`: the stage outputs of timm's module at 224x224, with
  weights and input drawn from their names alone, so that no weight file is needed.

timm imports torchvision, which does not import beside every build of PyTorch; that is why
this project does not depend on it, and why this script wants an environment of its own::

    python -m venv timm_environment
    timm_environment/bin/pip install torch torchvision timm
    timm_environment/bin/python scripts/make_timm_golden.py

`--check` compares a fresh computation with the stored files and writes nothing.  The draw
rules are explained in `tests/golden/TIMM.md`.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import os
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch

VARIANTS = tuple(f"efficientformerv2_{size}" for size in ("s0", "s1", "s2", "l"))
INPUT_NAME = "input_224x224"
INPUT_SHAPE = (1, 3, 224, 224)
SEED = 2405
# Relative difference (norm over norm) that another PyTorch or processor may make.
TOLERANCE = 1e-5
GOLDEN = Path(__file__).resolve().parents[1] / "tests" / "golden"


def generator(name: str) -> np.random.Generator:
    """Random generator that depends on nothing but a name."""
    return np.random.Generator(np.random.PCG64([SEED, zlib.crc32(name.encode())]))


def draw(name: str, shape: tuple[int, ...]) -> np.ndarray | None:
    """Value of one state-dict entry, drawn from its name.

    Args:
        name: timm's own name; what follows its last dot decides the distribution.
        shape: shape of the entry.

    Returns:
        float32 array of that shape, or None for an entry that keeps the value that the
        model creates it with (counters).
    """
    random = generator(name)
    leaf = name.rpartition(".")[2]
    if leaf == "running_mean":
        value = 0.1 * random.standard_normal(shape)
    elif leaf == "running_var":
        value = random.uniform(0.5, 1.5, shape)
    elif leaf == "gamma":
        value = random.uniform(0.05, 0.2, shape)
    elif leaf == "attention_biases":
        value = 0.5 * random.standard_normal(shape)
    elif leaf == "bias":
        value = 0.1 * random.standard_normal(shape)
    elif leaf == "weight" and math.prod(shape) == max(shape):  # a norm layer
        value = random.uniform(0.5, 1.5, shape)
    elif leaf == "weight":
        value = 0.7 * random.standard_normal(shape) / math.sqrt(math.prod(shape[1:]))
    else:
        return None
    return np.asarray(value, dtype=np.float32)


def draw_weights(model: torch.nn.Module) -> None:
    """Fill a model's floating-point state from names, in place.

    Raises:
        RuntimeError: the model has a floating-point entry that no rule covers.
    """
    state = model.state_dict()
    for name, tensor in state.items():
        if not tensor.is_floating_point():
            continue
        value = draw(name, tuple(tensor.shape))
        if value is None:
            raise RuntimeError(f"no draw rule covers {name}, shape {tuple(tensor.shape)}")
        state[name] = torch.from_numpy(value)
    model.load_state_dict(state, strict=True)


def compute() -> tuple[dict[str, np.ndarray], dict[str, dict[str, list[Any]]]]:
    """Run timm's four models.

    Returns:
        The features, `<variant>_stage<0..3>` -> float32 (C/8, h/2, w/2), every eighth channel
        and every second row and column of the stage's output; and the names,
        variant -> name -> [shape, dtype], the whole state dict (classifiers included).
    """
    import timm

    image = torch.from_numpy(generator(INPUT_NAME).standard_normal(INPUT_SHAPE).astype(np.float32))
    features: dict[str, np.ndarray] = {}
    names: dict[str, dict[str, list[Any]]] = {}
    for variant in VARIANTS:
        model = timm.create_model(variant, pretrained=False)
        draw_weights(model)
        model.eval()
        names[variant] = {
            name: [list(tensor.shape), str(tensor.dtype).removeprefix("torch.")]
            for name, tensor in model.state_dict().items()
        }
        with torch.no_grad():
            stages = model.forward_intermediates(image, intermediates_only=True)
        for index, stage in enumerate(stages):
            sampled = stage[0, ::8, ::2, ::2].contiguous().numpy()
            features[f"{variant}_stage{index}"] = sampled
        del model
    return features, names


def write(path: Path, content: bytes) -> None:
    """Replace a file in one step."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_bytes(content)
    os.replace(partial, path)


def listing(names: dict[str, dict[str, list[Any]]]) -> str:
    """JSON text of the names with one entry a line, so that a change can be read in a diff."""
    blocks = []
    for variant, entries in names.items():
        lines = [f"{json.dumps(name)}: {json.dumps(entry)}" for name, entry in entries.items()]
        blocks.append(f"{json.dumps(variant)}: {{\n" + ",\n".join(lines) + "\n}")
    return "{\n" + ",\n".join(blocks) + "\n}\n"


def differences(
    features: dict[str, np.ndarray], names: dict[str, dict[str, list[Any]]], folder: Path
) -> list[str]:
    """What differs between a fresh computation and the stored files, one line each."""
    lines = []
    stored_names = json.loads((folder / "timm_keys.json").read_text(encoding="utf-8"))
    for variant in VARIANTS:
        if names[variant] != stored_names.get(variant):
            lines.append(f"{variant}: the state dict's names, shapes or types differ")
    with np.load(folder / "timm_features.npz") as stored:
        if set(stored.files) != set(features):
            lines.append("timm_features.npz: other arrays than expected")
        for key in sorted(set(stored.files) & set(features)):
            expected = stored[key].astype(np.float64)
            if expected.shape != features[key].shape:
                lines.append(f"{key}: shape {features[key].shape}, stored {expected.shape}")
                continue
            distance = float(np.linalg.norm(features[key] - expected) / np.linalg.norm(expected))
            if not distance <= TOLERANCE:
                lines.append(f"{key}: relative difference {distance:.2e}, allowed {TOLERANCE:.0e}")
    return lines


def main() -> int:
    """Write the golden files, or compare them; returns the exit status."""
    parser = argparse.ArgumentParser(
        description="Regenerate the golden outputs of timm's own EfficientFormerV2."
    )
    parser.add_argument(
        "--output", type=Path, default=GOLDEN, help="folder of the golden files (%(default)s)"
    )
    parser.add_argument(
        "--check", action="store_true", help="compare with the stored files, write nothing"
    )
    arguments = parser.parse_args()
    try:
        import timm
    except (ImportError, RuntimeError) as error:  # RuntimeError: torchvision of another PyTorch
        print(
            f"timm cannot be imported here ({error}).\n"
            "Run this in an environment with `pip install torch torchvision timm`.",
            file=sys.stderr,
        )
        return 2
    versions = f"timm {timm.__version__}, torch {torch.__version__}, numpy {np.__version__}"
    torch.set_num_threads(1)
    features, names = compute()
    if arguments.check:
        lines = differences(features, names, arguments.output)
        print("\n".join(lines) or f"{len(features)} arrays and {len(names)} models agree")
        print(versions)
        return 1 if lines else 0
    packed = io.BytesIO()
    arrays: dict[str, Any] = dict(features)
    np.savez_compressed(packed, **arrays)
    write(arguments.output / "timm_features.npz", packed.getvalue())
    write(arguments.output / "timm_keys.json", listing(names).encode())
    print(f"{len(features)} arrays, {sum(map(len, names.values()))} names written; {versions}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
