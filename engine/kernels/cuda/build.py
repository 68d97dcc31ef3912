"""Builds the cubin of `gemm.cu`, and reads the kept one: python -m buzzer.engine.kernels.cuda.build

The cubin is kept beside its source, so that a machine without nvcc runs the code that was checked. `gemm.json` has the command, the
compiler's version, and the hashes of source and cubin. A cubin of another source is refused.
"""

import hashlib
import json
import re
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from buzzer.errors import UnsupportedError

FOLDER = Path(__file__).parent
SOURCES = ("gemm.cu", "gpu.cuh")
CUBIN, FACTS = "gemm.cubin", "gemm.json"
COMMAND = ("nvcc", "-std=c++17", "-arch=sm_90a", "-O3", "-cubin", "-Xptxas", "-v", "-o", CUBIN, SOURCES[0])


@dataclass(frozen=True)
class Kernel:
    """A compiled kernel: registers, and bytes of stack and of spilled registers, per thread."""

    registers: int
    stack: int
    spilled: int


@dataclass(frozen=True)
class Build:
    """How the cubin was built. Hashes are SHA-256. kernels: by name."""

    command: str
    compiler: str
    source: str
    cubin: str
    kernels: dict[str, Kernel]


def source_hash() -> str:
    """The hash of the sources."""
    return hashlib.sha256(b"".join((FOLDER / name).read_bytes() for name in SOURCES)).hexdigest()


def build() -> Build:
    """Compile the sources; replaces the kept cubin. Raises UnsupportedError without nvcc, RuntimeError with the compiler's output."""
    if shutil.which(COMMAND[0]) is None:
        raise UnsupportedError("nvcc is not on the PATH", "install the CUDA toolkit 13.0 or newer")
    version = subprocess.run([COMMAND[0], "--version"], check=True, capture_output=True, text=True).stdout
    with TemporaryDirectory() as folder:
        for name in SOURCES:
            shutil.copy(FOLDER / name, folder)
        done = subprocess.run(COMMAND, check=False, cwd=folder, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{' '.join(COMMAND)}: {done.stderr or done.stdout}")
        code = (Path(folder) / CUBIN).read_bytes()
    (FOLDER / CUBIN).write_bytes(code)
    found = re.search(r"V(\d+\.\d+\.\d+)", version)
    made = Build(
        " ".join(COMMAND),
        f"nvcc {found[1] if found else version}",
        source_hash(),
        hashlib.sha256(code).hexdigest(),
        kernels_of(done.stdout + done.stderr),
    )
    (FOLDER / FACTS).write_text(json.dumps(asdict(made), indent=1, sort_keys=True) + "\n")
    return made


def kernels_of(output: str) -> dict[str, Kernel]:
    """The kernels in the output of `ptxas -v`. Raises RuntimeError if products are serialised: then each waits for the one before."""
    if "C7518" in output or "serialized" in output:
        raise RuntimeError(f"the compiler has serialised the products: {output}")
    pattern = (
        r"entry function '(\w+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores.*?Used (\d+) registers"
    )
    return {
        name: Kernel(int(registers), int(stack), int(spilled))
        for name, stack, spilled, registers in re.findall(pattern, output, re.DOTALL)
    }


def kept() -> Build:
    """Facts about the kept cubin."""
    facts = json.loads((FOLDER / FACTS).read_text())
    return Build(**facts | {"kernels": {name: Kernel(**kernel) for name, kernel in facts["kernels"].items()}})


def cubin() -> bytes:
    """The kept cubin. Raises UnsupportedError if it is damaged or if the sources have changed since it was built."""
    facts, code = kept(), (FOLDER / CUBIN).read_bytes()
    hint = "python -m buzzer.engine.kernels.cuda.build"
    if hashlib.sha256(code).hexdigest() != facts.cubin:
        raise UnsupportedError(f"{CUBIN} is damaged", hint)
    if source_hash() != facts.source:
        raise UnsupportedError(f"{CUBIN} was built from other sources", hint)
    return code


if __name__ == "__main__":
    print(json.dumps(asdict(build())["kernels"], indent=1), file=sys.stdout)
