"""The code that an H100 would run, compiled here: tensor cores, registers, shared memory, and the order of PDL."""

from collections.abc import Callable
from typing import Any

import pytest

SHARED = 227 << 10  # bytes of shared memory that a block can have on compute capability 9.0
CODE = r"""
import json, re
from buzzer.engine.infer.fused_plan import Lowering
from buzzer.engine.infer.fused_weights import random
from buzzer.engine.kernels.offline import compiled
from buzzer.engine.kernels.tune import Tuned
import torch
from buzzer.engine.kernels import probe

def counter(*shape, dtype=torch.int32):
    return torch.empty(*shape, dtype=dtype, device="meta")

cases = [("fp16", 128, "pdl"), ("fp8", 128, "pdl"), ("int8", 128, "pdl"), ("fp8", 16384, "plain")]
cases += [("fp8", 128, "persistent")]
for precision, tokens, mode in cases:
    weights = random(1, 1024, 4096, 16, precision, "meta", vocabulary=100)
    for launch in Lowering(weights, tokens, 1, Tuned().tile, mode).program("mean", True).launches:
        code = compiled(launch)
        wait = code.ptx.find("griddepcontrol.wait")
        told = launch.facts() | code.facts() | dict(precision=precision, tokens=tokens, pdl=mode == "pdl")
        told["prefetched"] = 0 <= code.ptx.find("prefetch.global.L2") < wait
        told["reads_before_wait"] = len(re.findall(r"cp.async|st.global", code.ptx[: max(wait, 0)]))
        told["waits"] = wait >= 0
        told["order"] = re.findall(
            r"bar\.sync|(?:atom|red)\.global\.gpu\.release|ld\.volatile|fence\.acq_rel\.gpu|cp\.async|wgmma\.mma_async", code.ptx)
        print(json.dumps(told))
for launch in (probe.empty(counter(1), True), probe.reader(counter(99999), counter(132), 2),
               probe.barrier(counter(1), counter(1), 132)):
    print(json.dumps(launch.facts() | compiled(launch).facts() | dict(precision="probe")))
"""


@pytest.fixture(scope="module")
def compiled(compiles: Callable[[str], list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Every kernel of a layer of BERT-Large."""
    return compiles(CODE)


@pytest.mark.slow
def test_products_run_on_hoppers_tensor_cores(compiled: list[dict[str, Any]]) -> None:
    products = [x for x in compiled if "depth" in x]
    assert len(products) == 4 * 4
    assert {x["tensor_cores"] for x in products} == {"wgmma"}
    assert {x["tensor_cores"] for x in compiled if x["kernel"].endswith("attention")} == {"mma"}


@pytest.mark.slow
def test_kernels_fit_a_multiprocessor(compiled: list[dict[str, Any]]) -> None:
    assert max(x["shared"] for x in compiled) <= SHARED
    small = [x for x in compiled if x["precision"] != "probe" and x["tokens"] == 128]
    assert max(x["local"] for x in small) == 0
    # A 128 x 256 tile takes every register there is; some of its epilogue goes to local memory, once a tile.
    assert max(x["local"] for x in compiled) <= 512
    assert all(1 <= x["registers"] <= 255 for x in compiled)


@pytest.mark.slow
def test_dependent_launch_prefetches_constants_and_touches_nothing_else_before_the_wait(
    compiled: list[dict[str, Any]],
) -> None:
    kernels = [x for x in compiled if x["precision"] != "probe"]
    assert all(x["waits"] == x["pdl"] for x in kernels)
    dependent = [x for x in kernels if x["pdl"]]
    assert all(x["prefetched"] == ("depth" in x) for x in dependent)
    assert {x["reads_before_wait"] for x in dependent} == {0}


@pytest.mark.slow
def test_grid_barriers_release_what_was_written_and_acquire_before_anything_is_read(
    compiled: list[dict[str, Any]],
) -> None:
    """Seven barriers in the loop, each: all threads here, release; look, fence, all threads here.

    The order is that of the text, in which the compiler may put the look's loop apart.
    """
    (persistent,) = [x for x in compiled if x["kernel"] == "layers"]
    order = persistent["order"]
    releases = [i for i, x in enumerate(order) if "release" in x]
    fences = [i for i, x in enumerate(order) if x.startswith("fence")]
    assert len(releases) == len(fences) == order.count("ld.volatile") == 7
    assert {order[i - 1] for i in releases} == {"bar.sync"}
    assert {order[i + 1] for i in fences} == {"bar.sync"}
