"""Tables of a bench result, as Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from cgrseg.bench.profile import Profile
from cgrseg.bench.run import BASELINE, BenchResult
from cgrseg.bench.timing import WORKS

_LARGEST = 10


def as_markdown(result: BenchResult) -> str:
    """Every table of a result, with the machine that it was measured on."""
    machine = result.machine
    height, width = result.size
    lines = [
        f"{height}x{width} pixels, {result.num_classes} classes, weights {result.weights}.",
        "",
        f"- Device: {machine.device}; {machine.cores} cores, {machine.threads} threads, "
        f"{machine.memory_gib:.0f} GiB",
        f"- System: {machine.system}",
        "- Versions: " + ", ".join(f"{name} {v}" for name, v in machine.versions.items()),
    ]
    if result.clock == "processor":
        lines.append("- Clock: time on the processor, since others used it as well")
    if machine.load is not None:
        doubt = (
            ": **others used the processor; durations are doubtful**"
            if machine.busy and result.clock == "wall"
            else ""
        )
        lines.append(f"- Load before the start: {machine.load:.1f}{doubt}")
    if result.peaks is not None:
        rates = ", ".join(f"{n} {r / 1e9:.0f} GFLOP/s" for n, r in result.peaks.flops.items())
        lines.append(f"- Peaks: {rates}; copy {result.peaks.bandwidth / 1e9:.1f} GB/s")
    lines += [
        "",
        "Times are medians with quartiles over rounds in which all take turns, each twice, and the "
        "second time counts; ratios are taken "
        f"round by round to `{BASELINE}`: the published arithmetic, eager, float32."
        + (" Each path ran in a process of its own." if result.apart else ""),
        "",
    ]
    rows = [
        (
            row.variant,
            f"{WORKS[row.work]}, {row.batch} at once",
            row.subject,
            f"{row.seconds.median * 1e3:.1f}",
            f"{row.seconds.low * 1e3:.1f} to {row.seconds.high * 1e3:.1f}",
            f"{row.images_per_second:.1f}",
            f"{row.ratio.median:.2f}",
            f"{row.ratio.low:.2f} to {row.ratio.high:.2f}",
        )
        for row in result.rows
    ]
    header = ("network", "work", "path", "ms", "quartiles", "images/s", "times faster", "quartiles")
    lines += table(header, rows)
    if result.agreements:
        lines += ["", "Agreement with the plain path on the same input:", ""]
        lines += table(
            ("network", "path", "equal labels", "logits, relative error", "preparation"),
            [
                (
                    one.variant,
                    one.subject,
                    f"{100 * one.equal_labels:.4f} %",
                    f"{one.logits_error:.1e}",
                    one.preparation,
                )
                for one in result.agreements
            ],
        )
        shares = ", ".join(f"{v} {100 * s:.0f} %" for v, s in result.boundary_share.items())
        lines += ["", f"Cells whose four corners disagree about the best class: {shares}."]
    if result.memory:
        lines += ["", "Memory that predicting adds to the loaded network:", ""]
        memory = []
        for variant, subjects in result.memory.items():
            plain = subjects[BASELINE].grown
            memory += [
                (
                    variant,
                    name,
                    f"{one.loaded / 2**20:.0f}",
                    f"{one.grown / 2**20:.0f}",
                    f"{100 * one.grown / plain:.0f} %" if plain else "",
                )
                for name, one in subjects.items()
            ]
        lines += table(
            ("network", "path", "loaded MiB", "added MiB", "of the plain path's"), memory
        )
    return "\n".join(lines) + "\n"


def profile_markdown(profile: Profile, title: str) -> str:
    """The largest costs and the shortest possible time."""
    rows = [
        (
            cost.name,
            str(cost.calls),
            f"{cost.seconds * 1e3:.2f}",
            f"{100 * cost.seconds / profile.seconds:.0f} %",
            f"{cost.operations / 1e6:.0f}" if cost.operations else "",
            f"{cost.moved / 1e6:.1f}" if cost.moved else "",
            f"{cost.floor * 1e3:.2f}" if cost.floor is not None else "",
        )
        for cost in profile.costs[:_LARGEST]
    ]
    shown = sum(cost.seconds for cost in profile.costs[:_LARGEST])
    lines = [f"### {title}", ""]
    header = ("cost", "calls", "ms", "share", "MFLOP", "MB", "floor ms")
    lines += table(header, rows)
    lines += [
        "",
        f"These are {1e3 * shown:.1f} of {1e3 * profile.seconds:.1f} ms. Convolutions and "
        f"products are {profile.operations / 1e9:.2f} GFLOP and move {profile.moved / 1e6:.0f} MB "
        f"if nothing stays in a cache: at the device's peaks {1e3 * profile.compute_floor:.1f} ms "
        f"of computing, {1e3 * profile.moving_floor:.1f} ms of moving.",
    ]
    return "\n".join(lines) + "\n"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table; columns of numbers are right-aligned."""
    numeric = [
        bool(rows) and all(row[column][:1].isdigit() or not row[column] for row in rows)
        for column in range(len(header))
    ]
    return [
        "| " + " | ".join(header) + " |",
        "|" + "|".join("---:" if number else "---" for number in numeric) + "|",
        *("| " + " | ".join(row) + " |" for row in rows),
    ]
