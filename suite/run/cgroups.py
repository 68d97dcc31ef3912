"""Explains why BenchExec cannot use control groups here, and lists the commands that fix it.

BenchExec needs a control group that holds only its own processes: an existing `/benchexec` (control groups version 2), or one
from systemd. A container has neither by default. Runs are then polled.
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
    """Why control groups do not work, and the shell commands that fix it; the list is empty if no command can."""

    reason: str
    commands: list[str] = field(default_factory=list)


def missing(root: Path = ROOT, is_admin: bool | None = None) -> Missing:
    """Why control groups do not work on this machine. `is_admin`: whether this user is root."""
    if os.environ.get("BUZZER_ENFORCEMENT") == "polled":
        return Missing("BUZZER_ENFORCEMENT=polled asks for polling")
    if sys.platform != "linux":
        return Missing("only Linux has control groups")
    if importlib.util.find_spec("benchexec") is None:
        return Missing("BenchExec is not installed", ["pip install 'buzzer[run]'"])
    if not (root / "cgroup.controllers").exists():
        return Missing(
            f"no control groups of version 2 at {root}; with version 1, an administrator must set up groups for BenchExec: {MANUAL}"
        )
    admin = (os.geteuid() == 0) if is_admin is None else is_admin
    if not admin:
        command = "systemd-run --user --scope --slice=benchexec -p Delegate=yes buzzer run"
        return Missing("this user may not create a control group; systemd can provide one", [command])
    if not os.access(root, os.W_OK) or read_only(root):
        return Missing(
            f"{root} is read-only; start the container with --privileged or --cgroupns=private and mount it writable"
        )
    return Missing("BenchExec has no control group for itself", commands(root))


def read_only(root: Path) -> bool:
    """Whether a file system is mounted read-only."""
    return bool(os.statvfs(root).f_flag & os.ST_RDONLY)


def commands(root: Path) -> list[str]:
    """The commands that create the group that BenchExec looks for. They must be run by root, in a shell of the same container.

    A group that holds processes cannot delegate controllers, so the processes in a container's root group are moved to another
    group. The root group of the machine itself may hold processes; nothing is moved there.
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
