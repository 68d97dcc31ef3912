"""Why BenchExec cannot use control groups here, and the commands that change it.

BenchExec needs a group that holds only its own processes: a ready-made `/benchexec` (control groups version 2), or one from
systemd. A container has neither, and runs are only polled.
"""

import importlib.util
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
MANUAL = "https://github.com/sosy-lab/benchexec/blob/main/doc/INSTALL.md#setting-up-cgroups"


@dataclass(frozen=True)
class Missing:
    """Why control groups do not work, and the shell commands that make them work; none if there are no such commands."""

    reason: str
    commands: list[str] = field(default_factory=list)


def missing(root: Path = ROOT, is_admin: bool | None = None) -> Missing:
    """Why control groups do not work on this machine. `is_admin`: whether this user is root."""
    if os.environ.get("BUZZER_ENFORCEMENT") == "polled":
        return Missing("BUZZER_ENFORCEMENT=polled asks for polling")
    if sys.platform != "linux":
        return Missing("only Linux has control groups")
    if importlib.util.find_spec("benchexec") is None:
        return Missing("BenchExec is not installed", ["pip install benchexec"])
    if not (root / "cgroup.controllers").exists():
        return Missing(
            f"no control groups of version 2 at {root}; of version 1, BenchExec must be given some: {MANUAL}"
        )
    admin = (os.geteuid() == 0) if is_admin is None else is_admin
    if not admin:
        own = "systemd-run --user --scope --slice=benchexec -p Delegate=yes buzzer run"
        return Missing("this user may not create a control group; systemd can provide one", [own])
    if not os.access(root, os.W_OK) or read_only(root):
        return Missing(
            f"{root} is read-only; start the container with --privileged or --cgroupns=private and mount it writable"
        )
    return Missing("BenchExec has no group of its own", commands(root))


def read_only(root: Path) -> bool:
    """Whether a file system is mounted read-only."""
    return bool(os.statvfs(root).f_flag & os.ST_RDONLY)


def commands(root: Path) -> list[str]:
    """The commands that create the group that BenchExec looks for; for root, in a shell of the same container.

    A group that holds processes cannot pass controllers on, so the processes of a container's root move to another group.
    The machine's own root may hold processes; there nothing is moved.
    """
    inside = (root / "cgroup.type").exists()  # the machine's own root has no such file
    groups = f"{root}/init {root}/benchexec" if inside else f"{root}/benchexec"
    move = f"for p in $(cat {root}/cgroup.procs); do echo $p > {root}/init/cgroup.procs; done"
    delegate = "for c in $(cat {0}/cgroup.controllers); do echo +$c > {1}/cgroup.subtree_control; done"
    return [
        f"mkdir -p {groups}",
        *([move] if inside else []),
        delegate.format(root, root),
        delegate.format(root, root / "benchexec"),
    ]
