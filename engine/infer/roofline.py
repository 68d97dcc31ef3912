"""The machine's limits, measured with the fastest available kernels: memory bandwidth and peak FLOPs per second."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

STREAM_BYTES = 1 << 28  # larger than the caches of the measured machines
SIDES = {"cpu": 1024, "cuda": 8192}  # sides of the square matrices, large enough to reach the peak
SMALL = 64  # side of the matrices that only test whether a product runs, and how fast
EMULATED_SIDE = 256  # side of the matrices of a product that would take longer than TRIED_S, as it does in emulated precisions
# Seconds during which a call is repeated. The fastest call is the result, because a limit is the best time, not the typical one.
TRIED_S = {"cpu": 0.5, "cuda": 0.2}
SPIN_CYCLES = 200_000  # cycles of the GPU's clock, about 0.1 ms
Product = tuple[Callable[[], Any], int]  # a call, and its FLOPs
ROOF_ALIAS = {"int8-dynamic": "int8"}  # precision -> the precision whose limit applies to it


@dataclass(frozen=True)
class Roof:
    """The limits of a machine."""

    bandwidth: float  # bytes per second
    peak: dict[str, float]  # precision -> FLOPs per second; a multiply-add counts as two

    def floor_s(self, bytes_moved: int, flops: int, precision: str) -> float | None:
        """The least time of a run in seconds (Williams et al., CACM 2009); None if the precision has no measured peak."""
        peak = self.peak.get(ROOF_ALIAS.get(precision, precision))
        return None if peak is None else max(bytes_moved / self.bandwidth, flops / peak)


def measure(threads: int, device: str) -> Roof:
    """Measure the limits, for TRIED_S seconds per product and stream."""
    import torch

    torch.set_num_threads(threads)
    peaks = torch_products(device)
    if device == "cpu":
        for precision, products in onnx_products(threads).items():
            peaks.setdefault(precision, []).extend(products)
    timed = by_events() if device == "cuda" else by_clock
    return Roof(
        bandwidth=max(size / best(run, timed, TRIED_S[device]) for run, size in streams(device)),
        peak={
            name: max(flops / best(run, timed, TRIED_S[device]) for run, flops in products)
            for name, products in peaks.items()
            if products
        },
    )


def best(run: Callable[[], Any], timed: Callable[[Callable[[], Any]], float], tried_s: float) -> float:
    """The least time of a call in seconds. A call that takes longer than `tried_s` runs once."""
    times: list[float] = []
    while not times or sum(times) < tried_s:
        times.append(timed(run))
    return min(times)


def by_clock(run: Callable[[], Any]) -> float:
    """The time of a call on the CPU, in seconds."""
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def by_events() -> Callable[[Callable[[], Any]], float]:
    """A function that times a call with two GPU events, in seconds, without launch overhead and waiting."""
    import torch

    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def timed(run: Callable[[], Any]) -> float:
        torch.cuda._sleep(SPIN_CYCLES)  # the call is enqueued before the GPU reaches the first event
        start.record()
        run()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) / 1000

    return timed


def streams(device: str) -> list[tuple[Callable[[], Any], int]]:
    """A read, and STREAM's add (McCalpin 1995), each with the number of bytes that it moves."""
    import torch

    x = torch.ones(STREAM_BYTES // 4, device=device)
    y, out = torch.ones_like(x), torch.empty_like(x)
    return [(x.sum, STREAM_BYTES), (lambda: torch.add(x, y, out=out), 3 * STREAM_BYTES)]


def torch_products(device: str) -> dict[str, list[Product]]:
    """torch's products of square matrices by precision, if they run on this device. Small matrices test this and how fast they are, because
    an emulated product of large ones takes seconds."""
    sides = {name: side_for(device, run) for name, run in products_of(device, SMALL).items() if _runs(run)}
    by_side = {side: products_of(device, side) for side in {*sides.values()}}
    return {name: [(by_side[side][name], 2 * side**3)] for name, side in sides.items()}


def side_for(device: str, small: Callable[[], Any]) -> int:
    """The side of the matrices on which a product is timed. small: the product of matrices of side SMALL, which has run before."""
    side = SIDES[device]
    emulated = device == "cpu" and by_clock(small) * (side / SMALL) ** 3 > TRIED_S[device]
    return EMULATED_SIDE if emulated else side


def products_of(device: str, side: int) -> dict[str, Callable[[], Any]]:
    """A product of two square matrices in each precision that torch may support."""
    import torch

    size = (side, side)
    floats = torch.randn(size, device=device)
    bytes_ = torch.randint(-127, 128, size, dtype=torch.int8, device=device)
    half, brain = floats.half(), floats.bfloat16()
    products: dict[str, Callable[[], Any]] = {
        "fp32": lambda: floats @ floats,
        "bf16": lambda: brain @ brain,
        "int8": lambda: torch._int_mm(bytes_, bytes_),
    }
    if device == "cuda":
        eight, scale = floats.to(torch.float8_e4m3fn), torch.ones((), device=device)
        products["fp16"] = lambda: half @ half
        products["fp8"] = lambda: torch._scaled_mm(eight, eight.t(), scale, scale, out_dtype=torch.bfloat16)
    return products


def _runs(run: Callable[[], Any]) -> bool:
    try:
        run()
    except RuntimeError:
        return False
    return True


def onnx_products(threads: int) -> dict[str, list[Product]]:
    """ONNX Runtime's products with a constant right operand, which it packs in advance like weights; empty if it is not installed."""
    try:
        import onnxruntime
    except ImportError:
        return {}
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    rng, size = np.random.default_rng(0), (SIDES["cpu"],) * 2
    left = {
        "fp32": rng.standard_normal(size).astype("float32"),
        "int8": rng.integers(0, 256, size).astype("uint8"),
    }
    right = {"fp32": left["fp32"], "int8": rng.integers(-127, 128, size).astype("int8")}
    products: dict[str, list[Product]] = {}
    for name, kind in (("fp32", "MatMul"), ("int8", "MatMulInteger")):
        graph = product(kind, left[name], right[name])
        session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        run: Any = lambda session=session, x=left[name]: session.run(None, {"x": x})
        products[name] = [(run, 2 * SIDES["cpu"] ** 3)]
    return products


def product(kind: str, left: Any, right: Any) -> bytes:
    """A serialised ONNX graph of one matrix product, MatMul or MatMulInteger, with `right` as a constant."""
    from onnx import TensorProto, helper, numpy_helper

    input_type = helper.np_dtype_to_tensor_dtype(left.dtype)
    output_type = TensorProto.INT32 if kind == "MatMulInteger" else TensorProto.FLOAT
    graph = helper.make_graph(
        [helper.make_node(kind, ["x", "w"], ["y"])],
        "product",
        [helper.make_tensor_value_info("x", input_type, list(left.shape))],
        [helper.make_tensor_value_info("y", output_type, list(left.shape))],
        [numpy_helper.from_array(right, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return bytes(model.SerializeToString())
