"""Compiles C code of this project on the machine that runs it."""

import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

from buzzer import caches
from buzzer.errors import UnsupportedError, first_line

CACHE = "BUZZER_NATIVE_CACHE_DIR"
COMPILERS = ("gcc", "clang")
FLAGS = ("-O3", "-march=native", "-std=gnu11", "-shared", "-fPIC", "-ffp-contract=off")


def compiler_name() -> str:
    """The name of the C compiler; empty if there is none."""
    return next((name for name in COMPILERS if shutil.which(name)), "")


def compiler() -> str:
    """The name of the C compiler. Raises UnsupportedError if there is none."""
    if not (name := compiler_name()):
        raise UnsupportedError("no C compiler is installed", f"install {' or '.join(COMPILERS)}")
    return name


@cache
def library(source: Path) -> ctypes.CDLL:
    """The shared library of a C file. It is compiled once for each machine type, compiler and content of the file.

    Raises UnsupportedError if there is no compiler, if it fails, or if its library cannot be loaded.
    """
    # The predefined macros contain the compiler's version and the instructions that this processor has.
    macros = run([compiler(), *FLAGS, "-dM", "-E", "-x", "c", os.devnull])
    key = hashlib.sha256(b"\0".join([macros, " ".join(FLAGS).encode(), source.read_bytes()])).hexdigest()
    path = caches.compiled()[CACHE] / f"{source.stem}-{key[:16]}.so"
    if not path.is_file():
        build(source, path)
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:  # for example on a file system without execute permission
        raise UnsupportedError(f"cannot load {path}: {error}", f"set {CACHE} to another folder") from error


def build(source: Path, path: Path) -> None:
    """Compile a C file to a shared library. A process that is interrupted leaves no incomplete library.

    Raises UnsupportedError if the compiler fails, or if the folder cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            partial = Path(folder) / path.name
            run([compiler(), *FLAGS, "-o", str(partial), str(source), "-lm"])
            partial.replace(path)
    except OSError as error:
        raise UnsupportedError(
            f"cannot write {path.parent}: {error.strerror}", f"set {CACHE} to a folder that can be written"
        ) from error


def run(command: list[str]) -> bytes:
    """What a command of the compiler writes. Raises UnsupportedError if it fails."""
    try:
        return subprocess.run(command, capture_output=True, check=True).stdout
    except subprocess.CalledProcessError as error:
        reason = first_line(error.stderr.decode(errors="replace"))
        raise UnsupportedError(f"{command[0]} failed: {reason}", "install a newer gcc or clang") from error
