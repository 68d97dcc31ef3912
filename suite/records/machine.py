"""The machine, the library versions and the commit that records contain."""

import os
import platform
import subprocess
from contextlib import suppress
from dataclasses import asdict
from functools import cache
from importlib import metadata
from pathlib import Path

import psutil

from buzzer import plugins
from buzzer.engine import device
from buzzer.suite.budget import allowed_cores
from buzzer.suite.records.schema import Machine
from buzzer.suite.words import counted

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
    """This machine: processor, cores, memory, system and GPUs."""
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
    """Load average of the last minute. Other work on the machine is noise in a run's times."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0


def describe(facts: Machine) -> str:
    """The machine as one line for reports."""
    gpus = ", ".join(gpu.name for gpu in facts.gpus) or "no GPU"
    simd = f" ({facts.simd})" if facts.simd else ""  # older records do not have it
    return f"{facts.cpu}{simd}, {counted(facts.cores, 'core')}, {facts.memory_bytes / 2**30:.0f} GiB, {gpus}"


@cache
def versions() -> dict[str, str]:
    """The versions of Python, of the installed LIBRARIES, and of the distributions of plug-ins."""
    versions = {"python": platform.python_version()}
    for name in (*LIBRARIES, *plugins.distributions()):
        with suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions


@cache
def git_commit() -> str | None:
    """The checkout's commit, with `+dirty` if tracked files differ from it; None if this is an installed package."""
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
