"""The cache folders of the harness and of the libraries in its runs. By default they are below the user's cache folder.

BenchExec gives each run a new HOME and TMPDIR. With their default cache folders, the libraries would compile everything again in each run,
and a run would not find the tuned kernels.
"""

import os
import shutil
import sys
from contextlib import suppress
from pathlib import Path

from buzzer.errors import DataError

HOME = "BUZZER_CACHE"
# The environment variables of libraries for their caches of compiled code, and the default name of each folder.
COMPILED = {
    "BUZZER_NATIVE_CACHE_DIR": "native",  # buzzer.engine.infer.native
    "CUDA_CACHE_PATH": "cuda",  # the driver's compiler of PTX
    "CUPY_CACHE_DIR": "cupy",
    "LIBCUDF_KERNEL_CACHE_PATH": "libcudf",
    "PYTORCH_KERNEL_CACHE_PATH": "torch",
    "TORCHINDUCTOR_CACHE_DIR": "inductor",
    "TRITON_CACHE_DIR": "triton",
}

# CuPy's reductions without CUB's headers: each is compiled in 0.1 s in place of 0.9 s (NVRTC 13.0), for each type and block size.
COMPILING = {"CUPY_ACCELERATORS": ""}


def folder() -> Path:
    """The cache folder: $BUZZER_CACHE, or `buzzer` in the user's cache folder. It holds generated data, fits, compiled code and tuned kernels."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get(HOME) or Path(base) / "buzzer").absolute()


def kernels() -> Path:
    """The folder of the tuned kernels' parameters, with one file per GPU."""
    return folder() / "kernels"


def compiled() -> dict[str, Path]:
    """The folder of each cache of compiled code, by its environment variable."""
    return {
        variable: Path(os.environ.get(variable) or folder() / "compiled" / name)
        for variable, name in COMPILED.items()
    }


def environment() -> dict[str, str]:
    """Environment variables with which a run finds the caches outside its own HOME, and compiles less. Creates the folders."""
    folders = compiled()
    for path in folders.values():
        with suppress(OSError):  # the library then reports it, or works without a cache
            path.mkdir(parents=True, exist_ok=True)
    less = {name: os.environ.get(name, value) for name, value in COMPILING.items()}
    return less | {HOME: str(folder())} | {variable: str(path) for variable, path in folders.items()}


def state() -> str:
    """`warm` if any cache of compiled code is not empty, else `cold`."""
    return "warm" if any(path.is_dir() and any(path.iterdir()) for path in compiled().values()) else "cold"


def notice(text: str) -> None:
    """Print a line to stderr. A stream that is closed or full is ignored."""
    with suppress(OSError, ValueError):
        print(text, file=sys.stderr, flush=True)


def discard(path: Path, problem: str) -> None:
    """Remove a file or folder of the cache that cannot be used, with a notice. Raises DataError if it cannot be removed.

    Another process may have removed it meanwhile.
    """
    notice(f"{path}: {problem}; it is made again")
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except FileNotFoundError:
        return
    except OSError as error:
        raise DataError(f"cannot remove {path}: {error.strerror}", "remove it by hand") from error
