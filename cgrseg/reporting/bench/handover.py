"""A way of predicting handed to another process: its name, the network, the setting."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from cgrseg.models import CGRSeg
from cgrseg.reporting.bench.subjects import Setting, Subject, make_subject


def write_network(model: CGRSeg, file: Path) -> None:
    """Write a network so that :func:`subject_of` can build it again."""
    torch.save(
        {
            "state": model.state_dict(),
            "variant": model.variant,
            "num_classes": model.num_classes,
            "context_blocks": model.context_blocks,
            "channels": model.decode_head.conv_seg.in_channels,
        },
        file,
    )


def job_of(subject: str, weights: Path, setting: Setting) -> str:
    """What the other process is told, as JSON.

    Args:
        subject: a name that :func:`~cgrseg.reporting.bench.subjects.make_subject` knows.
        weights: a file of :func:`write_network`.
        setting: of the run.
    """
    return json.dumps(
        {
            "subject": subject,
            "weights": str(weights),
            "size": setting.size,
            "device": str(setting.device),
            "folder": None if setting.folder is None else str(setting.folder),
            "batches": setting.batches,
            "warm_up": setting.warm_up,
            "threads": torch.get_num_threads(),
        }
    )


def subject_of(text: str) -> tuple[Subject, Setting]:
    """Build the subject of a job in this process, with as many threads as the other has."""
    from cgrseg.inference.backends import use_threads

    job: dict[str, Any] = json.loads(text)
    use_threads(int(job["threads"]))
    stored = torch.load(str(job["weights"]), weights_only=True)
    model = CGRSeg(
        stored["variant"],
        stored["num_classes"],
        context_blocks=stored["context_blocks"],
        channels=stored["channels"],
    ).eval()
    model.load_state_dict(stored["state"])
    del stored
    height, width = (int(side) for side in job["size"])
    setting = Setting(
        (height, width),
        torch.device(job["device"]),
        Path(job["folder"]) if job["folder"] else None,
        tuple(int(batch) for batch in job["batches"]),
        warm_up=bool(job["warm_up"]),
    )
    return make_subject(str(job["subject"]), model, setting), setting
