"""Do labels survive a faster arithmetic? A trained checkpoint on its dataset, image by image.

The published arithmetic in float32 beside the compiled network in each precision: the share
of equal labels (all pixels; and of the worst image) and mIoU.

    python benchmarks/precision.py work_dirs/cgrseg-t_camvid/best.pth --split test
"""

from __future__ import annotations

import argparse
import sys

from cgrseg.cli.evaluate import config_of
from cgrseg.data.dataset import EvalDataset
from cgrseg.data.pairs import find_pairs
from cgrseg.data.resolve import resolve_spec
from cgrseg.devices import use_threads
from cgrseg.evaluation.metrics import ConfusionMatrix, SegmentationScores
from cgrseg.inference.ready_backend import make_backend
from cgrseg.inference.segmenting import segment
from cgrseg.models import load_model
from cgrseg.progress import shown_progress


def main() -> None:
    """Measure and print a table."""
    import torch

    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("checkpoint", help="of a run: its config names the dataset")
    parser.add_argument("--split", default="test")
    parser.add_argument("--data-root", help="folder of the dataset, where it is not the config's")
    parser.add_argument("--precisions", nargs="+", default=["fp32", "bf16"])
    parser.add_argument("--threads", type=int)
    parser.add_argument("--limit", type=int, help="only the first so many images")
    arguments = parser.parse_args()
    use_threads(arguments.threads)
    changes = {"data.root": arguments.data_root} if arguments.data_root else {}
    config = config_of(arguments.checkpoint, None, changes)
    spec = resolve_spec(config.data)
    pairs = find_pairs(spec, config.data.root, arguments.split)[: arguments.limit]
    model = load_model(arguments.checkpoint)
    backends = {"published, fp32": make_backend(model, "cpu")}
    for precision in arguments.precisions:
        backends[f"compiled, {precision}"] = make_backend(model, "cpu", precision, compile=True)
    matrices = {
        name: ConfusionMatrix(spec.num_classes, spec.ignore_index, sync_on_compute=False)
        for name in backends
    }
    equal: dict[str, list[float]] = {name: [] for name in backends}
    dataset = EvalDataset(spec, pairs)
    with shown_progress("comparing") as progress:
        for number in range(len(dataset)):
            item = dataset[number]
            first = None
            for name, backend in backends.items():
                labels = segment(backend, item["image"], config.test).labels
                first = labels if first is None else first
                equal[name].append(float((labels == first).mean()))
                matrices[name].update(torch.from_numpy(labels), torch.from_numpy(item["label"]))
            if progress is not None:
                progress(number + 1, len(dataset))
    print(f"{len(dataset)} images of {spec.title}, {arguments.split}\n", file=sys.stderr)
    print("| arithmetic | mIoU | labels equal to the first | of the worst image |")
    print("|---|---:|---:|---:|")
    for name, matrix in matrices.items():
        share = sum(equal[name]) / len(equal[name])
        score = SegmentationScores.from_matrix(matrix.counts).mean_iou
        print(
            f"| {name} | {100 * score:.2f} | {100 * share:.4f} % | {100 * min(equal[name]):.2f} % |"
        )


if __name__ == "__main__":
    main()
