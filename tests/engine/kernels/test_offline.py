"""The code that an H100 would run, compiled here: tensor cores, registers, shared memory, and the order of instructions."""

import itertools
from collections.abc import Callable
from typing import Any

import pytest

CODE = r"""
import dataclasses, json, re
from buzzer.engine.fused.lowering import Lowering
from buzzer.engine.fused.weights import random
from buzzer.engine.kernels.offline import compiled
from buzzer.engine.kernels.tune import Tuned
import torch
from buzzer.engine.kernels import probe

STEPS = dict(PREEXIT="start", CCTL="prefetch", LDG="load", LDGSTS="copy", ACQBULK="wait", STG="store")

# Loads of 16 bytes before the first instruction that names a loaded register.
def in_flight(sass):
    loaded, count = set(), 0
    for line in re.findall(r"/\*[0-9a-f]{4}\*/\s+(.*?);", sass):
        registers = {int(x) for x in re.findall(r"\bR(\d+)", line)}
        if found := re.search(r"LDG\.E\.128\S* R(\d+)", line):
            loaded |= set(range(int(found[1]), int(found[1]) + 4))
            count += 1
        elif registers & loaded:
            return count
    return 0

def counter(*shape, dtype=torch.int32):
    return torch.empty(*shape, dtype=dtype, device="meta")

# Of the mode library, the kernels that follow the libraries' products.
def launches(weights, tokens, mode):
    choose = lambda *x: dataclasses.replace(Tuned().tile(*x), library=mode == "library")
    launches = Lowering(weights, tokens, 1, choose, mode).program("mean", True).launches
    return [x for x in launches if mode != "library" or x.name.endswith((" norm", " epilogue"))]

cases = [("fp16", 128, "pdl"), ("fp8", 128, "pdl"), ("int8", 128, "pdl"), ("fp8", 16384, "plain")]
cases += [("fp8", 128, "early"), ("fp8", 128, "persistent"), ("int8", 16384, "library")]
for precision, tokens, mode in cases:
    weights = random(1, 1024, 4096, 16, precision, "meta", vocabulary=100)
    for launch in launches(weights, tokens, mode):
        code = compiled(launch)
        wait = code.ptx.find("griddepcontrol.wait")
        facts = launch.facts().as_json() | code.facts().as_json() | dict(precision=precision, tokens=tokens, mode=mode)
        facts["whole"] = launch.constants.get("WHOLE", False)
        facts["waits"] = wait >= 0
        # The machine instructions in their order: start of the next kernel, prefetch, load, copy to shared memory, wait, store.
        facts["steps"] = [STEPS[x] for x in re.findall(r"\b(PREEXIT|CCTL|LDG|LDGSTS|ACQBULK|STG)\b", code.sass)]
        facts["order"] = re.findall(
            r"bar\.sync|(?:atom|red)\.global\.gpu\.release|ld\.acquire\.gpu|cp\.async|wgmma\.mma_async", code.ptx)
        facts["one_looks"] = len(re.findall(r"%tid\.x;[^;]*setp\.ne\.u32 p, seen, 0;", code.ptx))
        facts["together"] = launch.options.get("launch_cooperative_grid", False)
        print(json.dumps(facts))
for launch in (probe.empty(counter(1), True), probe.reader(counter(248 * 1056 * 2048), counter(1056), 1),
               probe.reader(counter(1056 * 2048), counter(1056), 100), probe.barrier(counter(1), counter(1), 132)):
    code = compiled(launch)
    loops = [m.span() for m in re.finditer(r"(?s)\n(\$L__BB\d+_\d+):.*\bbra(?:\.uni)?\s+\1;", code.ptx)]
    loads = [m.start() for m in re.finditer(r"ld\.global\.cg\.v4\.b32", code.ptx)]
    facts = launch.facts().as_json() | code.facts().as_json() | dict(precision="probe", loads=len(loads))
    facts["all_loads"], facts["in_flight"] = code.ptx.count("ld.global"), in_flight(code.sass)
    facts["resident"] = probe.RESIDENT
    facts["looped"] = sum(any(a < at < b for a, b in loops) for at in loads)
    facts["together"] = launch.options.get("launch_cooperative_grid", False)
    print(json.dumps(facts))
"""


@pytest.fixture(scope="module")
def compiled(compiles: Callable[[str], list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Facts about every kernel of a layer of BERT-Large."""
    return compiles(CODE)


@pytest.mark.slow
def test_products_run_on_hoppers_tensor_cores(compiled: list[dict[str, Any]]) -> None:
    products = [x for x in compiled if "depth" in x]
    assert len(products) == 5 * 4
    assert {x["tensor_cores"] for x in products} == {"wgmma"}
    assert {x["tensor_cores"] for x in compiled if x["kernel"].endswith("attention")} == {"mma"}


@pytest.mark.slow
def test_kernels_fit_a_multiprocessor(compiled: list[dict[str, Any]]) -> None:
    """Triton has checked shared memory as on the device; no registers are spilled to local memory."""
    assert max(x["shared"] for x in compiled) > 48 << 10
    assert max(x["local"] for x in compiled) == 0
    assert len([x for x in compiled if x.get("mode") == "library"]) == 4
    assert all(1 <= x["registers"] <= 255 for x in compiled)


@pytest.mark.slow
def test_dependent_kernels_start_the_next_one_and_load_constants_before_the_wait(
    compiled: list[dict[str, Any]],
) -> None:
    """In the order of machine instructions. No store and no copy to shared memory precedes the wait."""
    kernels = [x for x in compiled if x["precision"] != "probe"]
    dependent = [x for x in kernels if x["mode"] in ("pdl", "early")]
    assert [x for x in kernels if x["waits"]] == dependent
    for x in dependent:
        wait = x["steps"].index("wait")
        before, after = x["steps"][:wait], x["steps"][wait + 1 :]
        product = "depth" in x
        if x["kernel"] == "embed":  # after the wait, since the run's inputs must be complete
            assert after[0] == "start"
        else:
            assert before[0] == "start"
        assert ("prefetch" in before) == (product and not x["whole"])
        assert not {"copy", "store"} & set(before)
        bare = x["kernel"] == "pool" or (product and x["precision"] == "fp16" and x["split"] > 1)
        assert ("load" in before) != bare
        attention = x["kernel"].endswith("attention")
        if attention or (product and not x["whole"]):  # vectors are loaded before; activations come by copies
            assert "load" not in after
            assert "copy" in after


@pytest.mark.slow
def test_early_weights_are_loaded_before_the_wait_and_fit_beside_the_previous_kernel(
    compiled: list[dict[str, Any]],
) -> None:
    """All weights of a share are loaded before the wait, 16 bytes per thread and load; after it, at most the activations."""
    layer = [x for x in compiled if x.get("mode") == "early"]
    early = [x for x in layer if x["whole"]]
    assert len(early) == 4
    for x in early:
        wait, a_load = x["steps"].index("wait"), 16 * 32 * x["warps"]
        assert x["steps"][:wait].count("load") >= x["columns"] * x["depth"] / a_load
        assert x["steps"][wait:].count("load") <= x["rows"] * x["depth"] / a_load
    for first, second in itertools.pairwise(layer):
        assert (
            first["shared"] + second["shared"] + (2 << 10) <= 227 << 10
        )  # the driver reserves 1 KB per program


@pytest.mark.slow
def test_grid_barriers_release_writes_and_acquire_before_reads(
    compiled: list[dict[str, Any]],
) -> None:
    """Seven barriers in the loop. Each: all threads arrive, release; one thread polls and acquires; all threads arrive."""
    (persistent,) = [x for x in compiled if x["kernel"] == "layers"]
    order = persistent["order"]
    releases = [i for i, x in enumerate(order) if "release" in x]
    looks = [i for i, x in enumerate(order) if x.startswith("ld.acquire")]
    assert len(releases) == len(looks) == persistent["one_looks"] == 7
    assert {order[i - 1] for i in releases} == {"bar.sync"}
    assert {order[i + 1] for i in looks} == {"bar.sync"}


@pytest.mark.slow
def test_kernels_with_barriers_are_launched_cooperatively(compiled: list[dict[str, Any]]) -> None:
    assert {x["kernel"] for x in compiled if x.get("together")} == {"layers", "barriers"}


@pytest.mark.slow
def test_the_bandwidth_probe_has_many_wide_loads_in_flight_in_its_loop(
    compiled: list[dict[str, Any]],
) -> None:
    """If the compiler moved the loads out of the loop, the measured bandwidth would be a hundred times too high."""
    readers = [x for x in compiled if x["kernel"] == "read"]
    assert len(readers) == 2
    for x in readers:
        assert x["all_loads"] == x["loads"] == x["looped"] >= 4
        assert x["in_flight"] >= 4
        registers = -(-x["registers"] // 8) * 8  # the driver gives them in eights
        assert x["resident"] * 128 * registers <= 65536  # of a multiprocessor
