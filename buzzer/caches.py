"""Where the harness, and the libraries in its runs, keep what can be used again: below the user's cache folder.

BenchExec gives each run a fresh HOME and TMPDIR. Left to their defaults, the libraries would compile everything anew in
each run, and a run would not find the kernels' tuned choices.
"""

import os
import shutil
import sys
from contextlib import suppress
from pathlib import Path

from buzzer.errors import DataError

HOME = "BUZZER_CACHE"
# The libraries' variables for their caches of compiled code, and the folder that each gets unless the user has set one.
COMPILED = {
    "CUDA_CACHE_PATH": "cuda",  # the driver's compiler of PTX
    "CUPY_CACHE_DIR": "cupy",
    "LIBCUDF_KERNEL_CACHE_PATH": "libcudf",
    "PYTORCH_KERNEL_CACHE_PATH": "torch",
    "TORCHINDUCTOR_CACHE_DIR": "inductor",
    "TRITON_CACHE_DIR": "triton",
}


def folder() -> Path:
    """$BUZZER_CACHE, or `buzzer` in the user's cache folder: generated data, fits, compiled code, tuned kernels."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get(HOME) or Path(base) / "buzzer").absolute()


def kernels() -> Path:
    """Where the tuned choices of kernels are kept, a file a GPU."""
    return folder() / "kernels"


def compiled() -> dict[str, Path]:
    """The folder of each cache of compiled code, by its variable."""
    return {
        variable: Path(os.environ.get(variable) or folder() / "compiled" / name)
        for variable, name in COMPILED.items()
    }


def environment() -> dict[str, str]:
    """Variables with which a run finds the caches outside its own HOME; the folders are made."""
    found = compiled()
    for path in found.values():
        with suppress(OSError):  # the library then says so, or goes without
            path.mkdir(parents=True, exist_ok=True)
    return {HOME: str(folder())} | {variable: str(path) for variable, path in found.items()}


def state() -> str:
    """`warm` where a cache of compiled code holds anything, else `cold`."""
    return "warm" if any(path.is_dir() and any(path.iterdir()) for path in compiled().values()) else "cold"


def notice(text: str) -> None:
    """A line on stderr about the caches. A stream that is closed or full ends nothing."""
    with suppress(OSError, ValueError):
        print(text, file=sys.stderr, flush=True)


def discard(path: Path, problem: str) -> None:
    """Remove a file or folder of the cache that cannot be used, and say so. Raises DataError where it stays."""
    notice(f"{path}: {problem}; it is made anew")
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    except OSError as error:
        raise DataError(f"cannot remove {path}: {error.strerror}", "remove it by hand") from error
