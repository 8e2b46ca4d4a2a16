"""CPUs that a process may use: affinity, quotas in trees of control groups, SLURM, torchrun."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from cgrseg import cpus
from cgrseg.processes import Process

V2 = "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw\n"
V1 = (
    "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755\n"
    "32 31 0:29 {top} /sys/fs/cgroup/cpu,cpuacct rw master:5 - cgroup cgroup rw,cpu,cpuacct\n"
    "33 31 0:30 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
)
Tree = Callable[..., Path]


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tree:
    """Write the files of a machine below a folder; the process may run on 16 CPUs."""
    for name in ("OMP_NUM_THREADS", "SLURM_CPUS_PER_TASK", "SLURM_CPUS_ON_NODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(cpus, "_affinity", lambda: set(range(16)))

    def write(files: dict[str, str]) -> Path:
        for name, content in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
        return tmp_path

    return write


def machine(groups: str, mounts: str, **quotas: str) -> dict[str, str]:
    return {"proc/self/cgroup": groups, "proc/self/mountinfo": mounts, **quotas}


@pytest.mark.parametrize(
    ("quota", "usable"),
    [
        ("400000 100000\n", 4),
        ("150000 100000\n", 1),  # 1.5
        ("350000 100000\n", 3),
        ("50000 100000\n", 1),  # half a CPU
        ("max 100000\n", 16),
        ("6400000 100000\n", 16),  # more than there are
        ("nonsense\n", 16),
        ("", 16),
    ],
)
def test_quota_of_version_2(tree: Tree, quota: str, usable: int) -> None:
    root = tree(machine("0::/\n", V2, **{"sys/fs/cgroup/cpu.max": quota}))
    assert cpus.usable_cpus(Process(), root) == usable


@pytest.mark.parametrize(
    ("service", "slice_", "usable"),
    [
        ("max 100000", "300000 100000", 3),  # the parent limits
        ("200000 100000", "300000 100000", 2),
        ("500000 100000", "300000 100000", 3),  # more than the parent has
        ("max 100000", "max 100000", 16),
    ],
)
def test_the_smallest_quota_of_nested_groups_counts(
    tree: Tree, service: str, slice_: str, usable: int
) -> None:
    quotas = {
        "sys/fs/cgroup/jobs.slice/cpu.max": slice_,
        "sys/fs/cgroup/jobs.slice/train.service/cpu.max": service,
        "sys/fs/cgroup/other.slice/cpu.max": "100000 100000",
    }
    root = tree(machine("0::/jobs.slice/train.service\n", V2, **quotas))
    assert cpus.usable_cpus(Process(), root) == usable


GROUPS_V1 = "9:name=systemd:/a\n8:memory:/docker/1f\n3:cpu,cpuacct:/docker/1f\n0::/a\n"


@pytest.mark.parametrize("top", ["/", "/docker/1f"])  # the host's tree, or the container's part
@pytest.mark.parametrize(
    ("quota", "usable"), [("200000", 2), ("150000", 1), ("-1", 16), ("20000", 1)]
)
def test_quota_of_version_1(tree: Tree, top: str, quota: str, usable: int) -> None:
    folder = "sys/fs/cgroup/cpu,cpuacct" + ("/docker/1f" if top == "/" else "")
    quotas = {f"{folder}/cpu.cfs_quota_us": quota, f"{folder}/cpu.cfs_period_us": "100000\n"}
    root = tree(machine(GROUPS_V1, V1.format(top=top), **quotas))
    assert cpus.usable_cpus(Process(), root) == usable


def test_a_group_outside_of_its_mount_uses_what_the_mount_shows(tree: Tree) -> None:
    quotas = {
        "sys/fs/cgroup/cpu.max": "700000 100000",
        "sys/fs/cpu.max": "100000 100000",  # never read
    }
    assert cpus.usable_cpus(Process(), tree(machine("0::/../other\n", V2, **quotas))) == 7


def test_mount_points_with_spaces(tree: Tree) -> None:
    mounts = "30 23 0:26 / /my\\040groups rw - cgroup2 cgroup2 rw\n"
    quotas = {"my groups/cpu.max": "200000 100000"}
    assert cpus.usable_cpus(Process(), tree(machine("0::/\n", mounts, **quotas))) == 2


def test_without_control_groups_the_affinity_counts(tree: Tree) -> None:
    assert cpus.usable_cpus(Process(), tree({})) == 16
    broken = machine("nonsense\n1:cpu\n", "too short - cgroup2\n- - -\n\n")
    assert cpus.usable_cpus(Process(), tree(broken)) == 16


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity on this system")
def test_affinity_of_this_process() -> None:
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert cpus.usable_cpus(Process()) == 1
    finally:
        os.sched_setaffinity(0, before)


@pytest.mark.parametrize(
    ("variables", "process", "usable"),
    [
        ({"SLURM_CPUS_PER_TASK": "6"}, Process(), 6),
        ({"SLURM_CPUS_PER_TASK": "64"}, Process(), 16),  # bound to fewer
        ({"SLURM_CPUS_PER_TASK": "3"}, Process(1, 4, 1, 4, "slurm"), 3),
        ({"SLURM_CPUS_ON_NODE": "8"}, Process(1, 4, 1, 4, "slurm"), 2),
        ({"SLURM_CPUS_ON_NODE": "8"}, Process(), 16),  # the job's affinity tells
        ({}, Process(1, 4, 1, 4, "pytorch"), 4),
        ({}, Process(1, 64, 1, 32, "pytorch"), 1),
        ({"SLURM_CPUS_PER_TASK": "8"}, Process(1, 2, 1, 2, "pytorch"), 4),  # torchrun in a task
        ({"SLURM_CPUS_PER_TASK": "many"}, Process(), 16),
    ],
)
def test_slurm_and_torchrun(
    tree: Tree,
    monkeypatch: pytest.MonkeyPatch,
    variables: dict[str, str],
    process: Process,
    usable: int,
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert cpus.usable_cpus(process, tree({})) == usable


def test_threads_follow_omp_num_threads_else_the_usable_cores(
    tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    siblings = {
        f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list": f"{cpu % 8},{cpu % 8 + 8}"
        for cpu in range(16)
    }
    root = tree(siblings)
    assert cpus.usable_threads(root) == 8  # two hardware threads per core
    tree(machine("0::/\n", V2, **{"sys/fs/cgroup/cpu.max": "500000 100000"}))
    assert cpus.usable_threads(root) == 5
    for text, threads in (("12", 12), ("3,2", 3), ("nonsense", 5), ("", 5), ("0", 5)):
        monkeypatch.setenv("OMP_NUM_THREADS", text)
        assert cpus.usable_threads(root) == threads, text


def test_openmp_variables_are_set_only_where_the_user_has_not(tree: Tree) -> None:
    root = tree(machine("0::/\n", V2, **{"sys/fs/cgroup/cpu.max": "200000 100000"}))
    environment: dict[str, str] = {}
    cpus.prepare_openmp(environment, root)
    assert environment == {
        "OMP_NUM_THREADS": "2",
        "GOMP_SPINCOUNT": cpus.SPIN_COUNT,
        "KMP_BLOCKTIME": "1",
    }
    for name, value in (("OMP_WAIT_POLICY", "active"), ("GOMP_SPINCOUNT", "7")):
        environment = {"OMP_NUM_THREADS": "9", name: value}
        cpus.prepare_openmp(environment, root)
        assert environment == {"OMP_NUM_THREADS": "9", name: value}


def test_without_a_limit_the_number_of_threads_is_left_to_pytorch(tree: Tree) -> None:
    environment: dict[str, str] = {}
    cpus.prepare_openmp(environment, tree({}))
    assert "OMP_NUM_THREADS" not in environment
