"""What a record says of the machine and of the software that made it."""

import os
import platform
import subprocess
from dataclasses import asdict
from functools import cache
from importlib import metadata
from pathlib import Path

import psutil

from buzzer.engine import device
from buzzer.suite.budget import allowed_cores
from buzzer.suite.records.record import Machine

LIBRARIES = (
    "buzzer",
    "numpy",
    "pandas",
    "polars",
    "pyarrow",
    "torch",
    "onnxruntime",
    "openvino",
    "tensorrt",
    "mlcommons-loadgen",
    "xgboost",
    "tokenizers",
    "benchexec",
    "cudf-cu13",
    "cudf-polars-cu13",
    "cupy-cuda13x",
    "nvforest-cu13",
    "dask-cuda",
)
ROOT = Path(__file__).resolve().parents[2]


@cache
def machine() -> Machine:
    """Processor, cores, memory, system and GPUs."""
    facts = {
        "cpu": device.cpu_name(),
        "simd": device.simd(),
        "cores": len(allowed_cores()),
        "memory_bytes": psutil.virtual_memory().total,
        "system": f"{platform.system()} {platform.release()}",
        "arch": platform.machine(),
        "gpus": [asdict(gpu) for gpu in device.gpus()],
    }
    return Machine.model_validate(facts)


def load_average() -> float:
    """Load average of the last minute: work of others beside a run is noise in it."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0


def describe(facts: Machine) -> str:
    """The machine in one line of a report."""
    gpus = ", ".join(gpu.name for gpu in facts.gpus) or "no GPU"
    simd = f" ({facts.simd})" if facts.simd else ""  # not in older records
    return f"{facts.cpu}{simd}, {facts.cores} cores, {facts.memory_bytes / 2**30:.0f} GiB, {gpus}"


@cache
def versions() -> dict[str, str]:
    """Python and the libraries that matter, where installed."""
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


@cache
def git_commit() -> str | None:
    """The checkout's commit, with `+dirty` when tracked files differ from it; None in an install."""
    try:
        commit = _git("rev-parse", "HEAD")
        return commit + ("+dirty" if _git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(*arguments: str) -> str:
    if not (ROOT / ".git").exists():
        raise OSError("not a checkout")
    command = ["git", "-C", str(ROOT), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
