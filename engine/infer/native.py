"""Compiles C code of this project on the machine that runs it."""

import ctypes
import hashlib
import os
import shutil
import subprocess
from functools import cache
from pathlib import Path

from buzzer import caches, manifest
from buzzer.errors import UnsupportedError, first_line

CACHE = "BUZZER_NATIVE_CACHE_DIR"
LIBRARY = "library.so"
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
    """The shared library of a C file. It is compiled once for each machine type, compiler and content of the file, and once more if it is
    damaged or cannot be loaded.

    Raises UnsupportedError if there is no compiler, if it fails, or if its library cannot be loaded.
    """
    # The predefined macros contain the compiler's version and the instructions that this processor has.
    macros = run([compiler(), *FLAGS, "-dM", "-E", "-x", "c", os.devnull])
    key = hashlib.sha256(b"\0".join([macros, " ".join(FLAGS).encode(), source.read_bytes()])).hexdigest()
    folder = caches.compiled()[CACHE] / f"{source.stem}-{key[:16]}"
    try:
        return loaded(source, folder)
    except OSError as error:
        caches.discard(folder, f"cannot be loaded: {error}")
    try:
        return loaded(source, folder)
    except OSError as error:  # for example on a file system without execute permission
        raise UnsupportedError(f"cannot load {folder}: {error}", f"set {CACHE} to another folder") from error


def loaded(source: Path, folder: Path) -> ctypes.CDLL:
    """The library of a C file in its folder, built there unless the folder is undamaged. Raises OSError if it cannot be loaded."""
    if not manifest.is_whole(folder):
        build(source, folder)
    return ctypes.CDLL(str(folder / LIBRARY))


def build(source: Path, folder: Path) -> None:
    """Compile a C file to LIBRARY in a new folder, with its manifest (`manifest.save`).

    Raises UnsupportedError if the compiler fails, or if the folder cannot be written.
    """

    def write(aside: Path) -> None:
        aside.mkdir()
        run([compiler(), *FLAGS, "-o", str(aside / LIBRARY), str(source), "-lm"])

    try:
        manifest.save(folder, write)
    except OSError as error:
        raise UnsupportedError(
            f"cannot write {folder.parent}: {error.strerror}", f"set {CACHE} to a folder that can be written"
        ) from error


def run(command: list[str]) -> bytes:
    """What a command of the compiler writes. Raises UnsupportedError if it fails."""
    try:
        return subprocess.run(command, capture_output=True, check=True).stdout
    except subprocess.CalledProcessError as error:
        reason = first_line(error.stderr.decode(errors="replace"))
        raise UnsupportedError(f"{command[0]} failed: {reason}", "install a newer gcc or clang") from error
