"""The kept cubin: that it is of these sources, and what its machine code does. With nvcc: that it can be built, and that the
structures given to the driver are those of cuda.h."""

import ctypes
import hashlib
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from buzzer.engine.kernels.cuda import build, driver
from buzzer.engine.kernels.cuda.launch import STAMPS
from buzzer.engine.kernels.cuda.layout import KINDS
from buzzer.errors import UnsupportedError

KERNELS = [
    f"{epilogue}_{kind.name}_{split}"
    for kind in KINDS.values()
    for epilogue in ("project", "gelu", "residual")
    for split in kind.splits
]
# The instruction of a product of 64 rows and columns and 32 bytes of the depth.
PRODUCTS = {
    "fp8": "QGMMA.64x64x32.F32.E4M3.E4M3",
    "int8": "IGMMA.64x64x32.S8.S8",
    "fp16": "HGMMA.64x64x16.F32",
}
needs_nvcc = pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not installed")
# What the machine instructions are called here; the others are left out.
STEPS = {
    "PREEXIT": "start", "FENCE.VIEW.ASYNC.G": "fence", "UBLKCP": "weights", "UTMALDG": "tile", "ACQBULK": "wait", "LDG": "load", "STG": "store",
    "QGMMA": "product", "IGMMA": "product", "HGMMA": "product", "UCGABAR_ARV": "arrive", "UCGABAR_WAIT": "together",
}  # fmt: skip


@pytest.fixture(scope="module")
def sass(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """The machine instructions of each kernel, by Triton's copy of cuobjdump."""
    triton = pytest.importorskip("triton")
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    file = tmp_path_factory.mktemp("cubin") / "gemm.cubin"
    file.write_bytes(build.cubin())
    command = [str(tool), "-sass", str(file)]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    parts = re.split(r"Function : (\w+)", output)[1:]
    return {
        name: re.findall(r"^\s+/\*[0-9a-f]{4,}\*/\s+(.*?)\s*;", code, re.MULTILINE)
        for name, code in zip(parts[::2], parts[1::2], strict=True)
    }


def steps(code: list[str]) -> list[str]:
    """The steps of a kernel in the order of its instructions, without predicates."""
    names = [re.sub(r"^@!?U?P\w+ ", "", x).split()[0] for x in code]
    found = [STEPS.get(name) or STEPS.get(name.split(".")[0]) for name in names]
    return [step for step in found if step]


def test_the_kept_cubin_is_of_these_sources() -> None:
    kept = build.kept()
    assert kept.source == build.source_hash()
    assert kept.cubin == hashlib.sha256(build.cubin()).hexdigest()
    assert kept.compiler.startswith("nvcc 13.")
    assert sorted(kept.kernels) == sorted(KERNELS)


def test_two_blocks_fit_in_the_registers_and_nothing_is_spilled() -> None:
    """A multiprocessor has 65,536 registers; a block has 256 threads."""
    for kernel in build.kept().kernels.values():
        assert kernel.stack == kernel.spilled == 0
        assert 2 * 256 * kernel.registers <= 65536


@pytest.mark.parametrize("name", KERNELS)
def test_weights_and_vectors_are_loaded_before_the_wait_and_all_else_after_it(
    sass: dict[str, list[str]], name: str
) -> None:
    order = steps(sass[name])
    assert order.count("wait") == 1
    assert order[0] == "start"
    before, after = order[: order.index("wait")], order[order.index("wait") :]
    assert "weights" in before
    assert before.count("load") >= 2  # vectors; 384 values for 256 threads
    assert not {"tile", "store", "product"} & set(before)
    assert "weights" not in after
    assert after.count("tile") == 2  # with and without multicast
    # One fence for all tiles: they read what the previous kernel has stored.
    assert after[: after.index("tile")].count("fence") == order.count("fence") == 1
    # The norms of rows and the residual are loaded before the product.
    assert after.count("load") == after[: after.index("product")].count("load")
    # All sums of the cluster are there before a store, and no block ends before the others have read its sums.
    end = len(after) - 1 - after[::-1].index("product")
    assert after[end + 1 : end + 3] == ["arrive", "together"]
    stamps = STAMPS + 1  # written after the last barrier, if times are taken
    assert after[-2 - stamps :] == ["arrive", "together"] + ["store"] * stamps
    assert "store" in after[end + 3 : -2 - stamps]


@pytest.mark.parametrize("name", KERNELS)
def test_products_run_on_tensor_cores_without_waits_between_them(
    sass: dict[str, list[str]], name: str
) -> None:
    """A chunk of 128 bytes is four instructions of 32; a loop runs them for each chunk."""
    code, instruction = sass[name], PRODUCTS[name.split("_")[1]]
    products = [at for at, x in enumerate(code) if instruction in x]
    assert len(products) == 4
    waits = [at for at, x in enumerate(code) if "WARPGROUP.DEPBAR" in x]
    assert waits
    assert not [at for at in waits if products[0] < at < products[-1]]
    assert not [x for x in code if re.search(r"\b(LDL|STL)\b", x)]  # local memory


def test_a_cubin_of_other_sources_or_a_damaged_one_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (*build.SOURCES, build.CUBIN, build.FACTS):
        shutil.copy(build.FOLDER / name, tmp_path)
    monkeypatch.setattr(build, "FOLDER", tmp_path)
    assert build.cubin()
    with (tmp_path / "gpu.cuh").open("a") as file:
        file.write("// changed\n")
    with pytest.raises(UnsupportedError, match="other sources"):
        build.cubin()
    (tmp_path / build.CUBIN).write_bytes(b"not a cubin")
    with pytest.raises(UnsupportedError, match="damaged"):
        build.cubin()


def test_serialised_products_are_an_error_of_the_build() -> None:
    with pytest.raises(RuntimeError, match="serialised"):
        build.kernels_of(
            "ptxas info : (C7518) Potential Performance Loss: wgmma.mma_async instructions are serialized"
        )


def test_without_nvcc_a_build_is_unsupported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UnsupportedError, match="nvcc"):
        build.build()


@needs_nvcc
@pytest.mark.slow
def test_the_sources_can_be_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in build.SOURCES:
        shutil.copy(build.FOLDER / name, tmp_path)
    kept = build.kept()
    monkeypatch.setattr(build, "FOLDER", tmp_path)
    made = build.build()
    assert build.cubin()
    if made.compiler == kept.compiler:
        assert made.cubin == kept.cubin
    assert sorted(made.kernels) == sorted(KERNELS)
    assert all(kernel.stack == kernel.spilled == 0 for kernel in made.kernels.values())


@needs_nvcc
@pytest.mark.slow
def test_structures_and_constants_are_those_of_cuda_h(tmp_path: Path) -> None:
    source = """
#include <cstddef>
#include <cstdio>
#include <cuda.h>
int main() {
    printf("%zu %zu %zu %zu ", sizeof(CUlaunchAttribute), offsetof(CUlaunchAttribute, value), sizeof(CUlaunchConfig), sizeof(CUtensorMap));
    printf("%zu %zu %zu %zu\\n", offsetof(CUlaunchConfig, sharedMemBytes), offsetof(CUlaunchConfig, hStream),
           offsetof(CUlaunchConfig, attrs), offsetof(CUlaunchConfig, numAttrs));
"""
    constants = [name for name in vars(driver) if name.startswith("CU_")]
    lines = [f'    printf("%d\\n", int({name}));\n' for name in constants]
    (tmp_path / "x.cu").write_text(source + "".join(lines) + "}\n")
    program = tmp_path / "x"
    subprocess.run(["nvcc", "-o", program, tmp_path / "x.cu"], check=True, capture_output=True)
    sizes, *values = subprocess.run([program], check=True, capture_output=True, text=True).stdout.splitlines()
    attribute, config = driver.LaunchAttribute, driver.LaunchConfig
    assert sizes.split() == [
        str(x)
        for x in (
            ctypes.sizeof(attribute), attribute.value.offset, ctypes.sizeof(config), driver.MAP_BYTES,
            config.shared.offset, config.stream.offset, config.attributes.offset, config.count.offset,
        )
    ]  # fmt: skip
    assert [int(x) for x in values] == [getattr(driver, name) for name in constants]
