"""Installs the missing packages of a machine without network from `.gpukit`. Standard library only."""

import lzma
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from buzzer import caches
from buzzer.suite.gpu.results import CACHES, StepResult

ROOT = Path(__file__).resolve().parents[2]
SEED_FILE = "seed.tar.xz"


def install(kit: Path, log: Path) -> tuple[list[str], list[StepResult]]:
    """Install a kit. Returns folders for PYTHONPATH, and the results; both are empty if there is no kit.

    A kit has pieces that unpack themselves (`p*/unpack.py`, which prints its folder with --site), wheels (`wheels/*.whl`), data
    and fits (`seed.tar.xz`), and the caches of an earlier run (`caches.tar.xz`). The steps report what a broken kit lacks.
    """
    if not kit.is_dir():
        return [], []
    folders, began, name = list[str](), time.monotonic(), ""
    log.parent.mkdir(parents=True, exist_ok=True)
    try:
        with log.open("wb") as file:
            folders += unpack_pieces(sorted(kit.glob("p*/unpack.py")), file)
            folders += install_wheels(sorted(kit.glob("wheels/*.whl")), file)
        for name in (SEED_FILE, CACHES):
            unpack_archive(kit / name)
        status, message = "ok", " ".join(folders)
    except subprocess.CalledProcessError as error:
        status, message = "failed", f"{Path(error.cmd[1]).name} ended with {error.returncode}: see {log.name}"
    except (OSError, tarfile.TarError, lzma.LZMAError) as error:
        status, message = "failed", f"{kit / name}: {error}"
    return folders, [StepResult("kit", status, round(time.monotonic() - began, 1), message=message)]


def unpack_pieces(pieces: Sequence[Path], log: IO[bytes]) -> list[str]:
    """Unpack the pieces. Returns the folder that they unpack into, in a list; an empty list without pieces."""
    for piece in pieces:
        command = [sys.executable, str(piece), str(piece.parent)]
        subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, check=True)
    if not pieces:
        return []
    command = [sys.executable, str(pieces[0]), "--site"]
    return [subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()]


def install_wheels(wheels: Sequence[Path], log: IO[bytes]) -> list[str]:
    """Install the wheels into a new folder. Returns the folder in a list; an empty list without wheels."""
    if not wheels:
        return []
    site = tempfile.mkdtemp(prefix="buzzer-gpu-suite-site-")
    options = ["--no-index", "--no-deps", "--no-compile", "--quiet", "--target", site]
    command = [sys.executable, "-m", "pip", "install", *options, *map(str, wheels)]
    subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, check=True)
    return [site]


def unpack_archive(archive: Path) -> None:
    """Unpack an archive, if the kit has it, into the cache of `buzzer run`."""
    if archive.is_file():
        with tarfile.open(archive) as tar:
            tar.extractall(caches.folder(), filter="data")


def environment(folders: Sequence[str]) -> dict[str, str]:
    """This process's environment, with the kit's folders before the machine's own on PYTHONPATH."""
    inherited = os.environ.get("PYTHONPATH", "")
    path = os.pathsep.join(part for part in (str(ROOT), *folders, inherited) if part)
    return os.environ | caches.environment() | {"PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}
