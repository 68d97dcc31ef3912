"""The bench protocol: what it detects, the order of runs, what it writes, and the command line."""

import importlib.util
import json
import math
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import buzzer
from buzzer.engine.infer import Array, Plan
from buzzer.engine.infer.onnx.export import export
from buzzer.errors import BuzzerError, DataError, UnsupportedError, UsageError
from buzzer.models.api.bench import LEAST_PROBES, PROBES, BenchModel, BenchSpec, altered
from buzzer.models.api.context import RunContext
from buzzer.models.onnx_file import TARGET as ONNX_FILE
from buzzer.suite import registry
from buzzer.suite.bench import answers_cache, bench_runs, groups, identity, plan
from buzzer.suite.bench.bench_runs import keep_logs
from buzzer.suite.bench.checks import WORST, Check, as_rows, least_cosine
from buzzer.suite.bench.loadgen import Scenario
from buzzer.suite.bench.plan import BenchSelection
from buzzer.suite.bench.protocol import ended_early
from buzzer.suite.bench.timing import (
    LEAST_RUNS,
    Sampling,
    Timer,
    first_of_each_shape,
    flusher,
    gpu_state,
    no_flush,
    warm_up,
)
from buzzer.suite.cli import app
from buzzer.suite.cli.bench import seeds_of
from buzzer.suite.records import comparable, gate, integrity, record
from buzzer.suite.records.collection import load_records
from buzzer.suite.records.schema import Record
from buzzer.suite.report import bench_table
from buzzer.suite.report.display import Quiet
from buzzer.suite.requests import BenchRequest
from buzzer.suite.run import runner
from buzzer.suite.run.executor import Executor

ROOT = Path(__file__).parents[3]


def target(n: int = 3) -> BenchModel:
    """A model that doubles its input. Every batch has other numbers."""
    rng = np.random.default_rng(0)
    batches = [{"x": rng.normal(size=(2, 4)).astype("float32")} for _ in range(n)]
    return BenchModel(None, ("y",), batches, lambda b: {"y": 2 * b["x"]}, [2] * n)


class Good:
    """A session that computes."""

    def __init__(self) -> None:
        self.calls: list[Array] = []

    def run(self, batch: Mapping[str, Array]) -> dict[str, Array]:
        self.calls.append(batch["x"])
        return {"y": 2 * batch["x"]}

    def poison(self) -> None:
        """Do nothing: each run returns new arrays."""


class Stale(Good):
    """Computes the first input only and then returns the same buffer again, as if a kernel were missing from a CUDA graph."""

    def run(self, batch: Mapping[str, Array]) -> dict[str, Array]:
        if not self.calls:
            self.buffer = 2 * batch["x"]
        self.calls.append(batch["x"])
        return {"y": self.buffer}


class StaleCopy(Stale):
    """The same, but returns copies, so that only the rotating inputs reveal it."""

    def run(self, batch: Mapping[str, Array]) -> dict[str, Array]:
        return {"y": super().run(batch)["y"].copy()}


class Cut(Good):
    def run(self, batch: Mapping[str, Array]) -> dict[str, Array]:
        return {"y": super().run(batch)["y"][:1]}


def timed(session: Any, count: int = 7, loaded: BenchModel | None = None) -> tuple[Check, Any]:
    loaded = loaded or target()
    check = Check(loaded, [dict(loaded.reference(b)) for b in loaded.batches])
    return check, Timer(session, loaded, check, "cpu").measure(Sampling(count, 0.0, 60.0), no_flush)


def test_a_right_session_passes_and_its_inputs_rotate() -> None:
    session = Good()
    check, samples = timed(session)
    assert check.scores() == {
        "cosine": pytest.approx(1.0),
        "max_relative_error": 0.0,
        "argmax_agreement": 1.0,
    }
    assert (check.runs, check.bad, samples.rows, len(samples.wall)) == (7, 0, 14, 7)
    assert len({x.tobytes() for x in session.calls}) == 3


@pytest.mark.parametrize(("session", "bad"), [(Stale, 6), (StaleCopy, 0), (Cut, 7)])
def test_a_session_that_does_not_compute_is_detected(session: Callable[[], Any], bad: int) -> None:
    check, _ = timed(session())
    assert check.bad == bad
    assert check.scores()["cosine"] < 0.9
    if bad:
        assert check.cosine == WORST


def test_a_wrong_scale_is_an_error_though_the_cosine_is_right() -> None:
    class Twice(Good):
        def run(self, batch: Mapping[str, Array]) -> dict[str, Array]:
            return {"y": 4 * batch["x"]}

    scores = timed(Twice())[0].scores()
    assert scores["cosine"] == pytest.approx(1.0)
    assert scores["max_relative_error"] == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("got", "want", "cosine"),
    [
        ([[1.0, 0.0], [0.0, 2.0]], [[2.0, 0.0], [2.0, 0.0]], 0.0),  # the worst row counts
        ([[3.0], [4.0]], [[4.0], [3.0]], 24 / 25),  # one value a row: one vector
        ([3.0, 4.0], [4.0, 3.0], 24 / 25),
        ([[0.0, 0.0]], [[0.0, 0.0]], 1.0),
        ([[0.0, 0.0]], [[1.0, 0.0]], 0.0),
    ],
)
def test_cosines_by_hand(got: Any, want: Any, cosine: float) -> None:
    assert least_cosine(as_rows(np.array(got)), as_rows(np.array(want))) == pytest.approx(cosine)


@pytest.mark.parametrize(
    ("scores", "status", "text"),
    [
        ({"cosine": 0.999999, "max_relative_error": 1e-5}, "passed", ""),
        ({"cosine": 0.99, "max_relative_error": 1e-5}, "failed", "least cosine 0.99000"),
        ({"cosine": 1.0, "max_relative_error": 0.5}, "failed", "relative error 0.5"),
    ],
)
def test_the_gate_limits_cosine_and_error(scores: dict[str, float], status: str, text: str) -> None:
    fields = {"precision": "fp32", "scores": scores | {"argmax_agreement": 1.0}, "bench": None, "samples": {}}
    judged = gate.judge_bench(Record.model_construct(**fields), **registry.bench_gate("fp32"))
    assert judged.gate.status == status
    assert text in getattr(judged, "message", "")
    assert (getattr(judged, "outcome", "ok") == "wrong") == (status == "failed")


def test_runs_reach_the_count_the_seconds_and_every_input() -> None:
    assert len(timed(Good(), 1)[1].wall) == 3
    check = Check(target(), [dict(target().reference(b)) for b in target().batches])
    began = time.perf_counter()
    samples = Timer(Good(), target(), check, "cpu").measure(Sampling(1, 0.05, 60.0), lambda: time.sleep(0.02))
    assert time.perf_counter() - began >= 0.05
    assert len(samples.wall) <= 4  # the seconds before a run count too


def test_a_slow_session_is_ended() -> None:
    loaded, session = target(), Good()
    check = Check(loaded, [dict(loaded.reference(b)) for b in loaded.batches])
    samples = Timer(session, loaded, check, "cpu").measure(Sampling(50, 1.0, 0.0), no_flush)
    assert len(samples.wall) == LEAST_RUNS
    context = RunContext("t", "none", "b", "bf16", "cpu", Path(), Path(), Path(), 1.0, 0, 1)
    assert ended_early(context, 4, 50, 0.5) == (
        "b bf16 was stopped after 0.5 s, with 4 of 50 runs (--at-most)",
    )
    assert ended_early(context, 50, 50, 0.5) == ()
    before = len(session.calls)
    warm_up(session, loaded, 0.0)
    assert len(session.calls) == before + 1


def test_padding_does_not_count() -> None:
    loaded = target(2)
    keep = [np.array([True, False])] * 2
    masked = BenchModel(None, ("y",), loaded.batches, loaded.reference, [2, 2], valid=keep)
    check = Check(masked, [dict(masked.reference(b)) for b in masked.batches])
    wrong = 2 * masked.batches[0]["x"]
    wrong[1] = 9
    check.add(0, {"y": wrong})
    assert check.cosine == pytest.approx(1.0)
    assert check.rows == 1


def test_an_output_that_was_compared_is_not_compared_again(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[int] = []
    monkeypatch.setattr(
        "buzzer.suite.bench.checks.least_cosine",
        lambda got, want: compared.append(1) or least_cosine(got, want),
    )
    check, _ = timed(Good(), 9)
    assert (len(compared), check.runs, check.rows, check.hits) == (3, 9, 18, 18)

    class Drifts(Good):
        """Right in the first runs, and a little wrong later."""

        def run(self, batch: Mapping[str, Array]) -> dict[str, Array]:
            factor = 1.0 if len(self.calls) < 3 else 1.01
            return {"y": super().run(batch)["y"] * factor}

    check, _ = timed(Drifts(), 9)
    assert check.error == pytest.approx(0.01, rel=1e-3)


class Device:
    """A stand-in for torch.cuda that records what is enqueued, in order. Its time advances by one millisecond per replay."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.queue: list[str] = []
        device = self

        class Event:
            def __init__(self, enable_timing: bool) -> None:
                assert enable_timing
                self.at = 0

            def record(self) -> None:
                device.queue.append("event")
                self.at = device.queue.count("replay")

            def synchronize(self) -> None:
                device.queue.append("wait")

            def elapsed_time(self, end: Any) -> float:
                return float(end.at - self.at)

        parts = {
            "Event": Event,
            "synchronize": lambda: self.queue.append("wait"),
            "_sleep": lambda cycles: self.queue.append("spin"),
            "get_device_properties": lambda index: SimpleNamespace(L2_cache_size=1 << 12),
        }
        for name, part in parts.items():
            monkeypatch.setattr(torch.cuda, name, part)


class Staged(Good):
    """A session with stages, on the stand-in."""

    def __init__(self, device: Device) -> None:
        super().__init__()
        self.device = device

    def run(self, batch: Mapping[str, Array]) -> dict[str, Array]:
        self.device.queue.append("run")
        return super().run(batch)

    def stage(self, batch: Mapping[str, Array]) -> Mapping[str, Array]:
        self.device.queue.append("stage")
        return batch

    def replay(self, staged: Mapping[str, Array]) -> None:
        self.device.queue.append("replay")

    def fetch(self, staged: Mapping[str, Array]) -> dict[str, Array]:
        self.device.queue.append("fetch")
        return Good.run(self, staged)

    def poison(self) -> None:
        self.device.queue.append("poison")


def test_device_time_is_that_of_the_replay_behind_a_spin(monkeypatch: pytest.MonkeyPatch) -> None:
    device, loaded = Device(monkeypatch), target()
    check = Check(loaded, [dict(loaded.reference(b)) for b in loaded.batches])
    timer = Timer(Staged(device), loaded, check, "cuda")
    samples = timer.measure(Sampling(3, 0.0, 60.0), lambda: device.queue.append("flush"))
    wall = ["flush", "poison", "wait", "event", "run", "event", "wait"]
    alone = ["flush", "poison", "stage", "wait", "spin", "event", "replay", "event", "wait", "fetch"]
    assert device.queue == (wall + alone) * 3
    assert samples.device == [0.001] * 3
    assert check.scores()["cosine"] == pytest.approx(1.0)


def test_a_flush_of_a_gpu_ends_with_a_clean_read(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device(monkeypatch)
    monkeypatch.setattr(torch, "zeros", lambda size, device: Buffer(size))

    class Buffer:
        def __init__(self, size: int) -> None:
            assert size * 4 >= 4 << 12

        def add_(self, value: int) -> None:
            device.queue.append(f"write {id(self)}")

        def sum(self) -> None:
            device.queue.append(f"read {id(self)}")

    flusher("cuda")()
    write, read, last = device.queue
    assert (write.split()[0], read.split()[0], last) == ("write", "read", "wait")
    assert write.split()[1] != read.split()[1]


def test_the_state_of_a_gpu_is_reported_or_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    assert gpu_state("cpu") is None
    readings = {"clock_rate": 1980, "power_draw": 350_500, "temperature": 41}
    for name, value in readings.items():
        monkeypatch.setattr(torch.cuda, name, lambda value=value: value)
    assert gpu_state("cuda") == {"sm_mhz": 1980, "power_w": 350.5, "temperature_c": 41}

    def missing() -> int:
        raise ModuleNotFoundError("pynvml")

    monkeypatch.setattr(torch.cuda, "power_draw", missing)
    assert gpu_state("cuda") is None


def test_each_size_is_run_once_before_the_timing() -> None:
    batches = [{"x": np.zeros((1, n), dtype="float32")} for n in (4, 8, 4, 8, 2)]
    loaded = BenchModel(None, ("y",), batches, lambda b: {}, [1] * 5)
    assert first_of_each_shape(loaded) == [0, 1, 4]


def test_a_flush_touches_more_than_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("buzzer.engine.device.cache_bytes", lambda: 1 << 16)
    flush = flusher("cpu")
    flush()
    words = next(c.cell_contents for c in flush.__closure__ or () if hasattr(c.cell_contents, "nbytes"))
    assert words.nbytes >= 4 << 16
    assert (words == 1).all()


# ---- plan ---------------------------------------------------------------------------------------------------------


def select(**changes: Any) -> BenchSelection:
    """The selection of a request for MiniLM-L6, whether or not it could run here."""
    fields: dict[str, Any] = {"model": "minilm-l6", "backends": ["torch_eager", "onnxruntime", "tensorrt"]}
    fields |= {"precisions": ["fp32", "bf16"], "seq": 8, "inputs": 2, "rounds": 3}
    (selection,) = plan.selections(BenchRequest(**fields | changes))
    return selection


def test_rounds_alternate_and_a_variant_that_cannot_run_occurs_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(name: str) -> Any:
        if name == "tensorrt":
            raise UnsupportedError("TensorRT is not installed", "pip install it")
        return SimpleNamespace(PRECISIONS=("fp32",) if name == "onnxruntime" else ("fp32", "bf16"))

    monkeypatch.setattr(plan.infer, "load", load)
    planned = plan.plan(select())
    runs = [(p.run.repeat, p.run.backend, p.run.precision) for p in planned if p.problem is None]
    first = [("torch_eager", "fp32"), ("torch_eager", "bf16"), ("onnxruntime", "fp32")]
    assert runs == [(i, *v) for i, order in enumerate((first, first[::-1], first)) for v in order]
    problems = {(p.run.backend, p.run.precision): p.problem.message for p in planned if p.problem}
    assert problems == {
        ("onnxruntime", "bf16"): "onnxruntime has no precision bf16",
        ("tensorrt", "fp32"): "TensorRT is not installed",
        ("tensorrt", "bf16"): "TensorRT is not installed",
    }
    every = plan.plan(select(precisions="all", rounds=1))
    assert [(p.run.backend, p.run.precision) for p in every] == [*first, ("tensorrt", "any")]


def test_a_bench_that_is_stopped_in_its_reference_has_a_record(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, make_record: Callable[..., Record]
) -> None:
    stopped = make_record(
        outcome="error", message="interrupted in phase predict", details={"interrupted": True}
    )
    monkeypatch.setattr(runner, "bench", lambda *_: stopped)
    selection, out = select(backends=["torch_eager", "onnxruntime"], rounds=2), tmp_path / "out"
    (written,) = bench_runs.execute([selection], Executor(out, Quiet()))
    assert runner.interrupted(written)
    assert written.message == "its reference ended error: interrupted in phase predict"
    assert list(integrity.check(record.paths([out])).values()) == [[]]


def test_models_are_found_by_name_file_and_folder(tmp_path: Path) -> None:
    (tmp_path / "net.onnx").write_bytes(b"")
    assert registry.model(str(tmp_path / "net.onnx")).params == {"path": str(tmp_path / "net.onnx")}
    assert registry.model(str(tmp_path)).params == {"weights": str(tmp_path)}
    with pytest.raises(UsageError) as caught:
        registry.model("bert-bse")
    assert "did you mean bert-base" in caught.value.hint
    with pytest.raises(UsageError, match="no such file"):
        registry.model("missing.onnx")
    with pytest.raises(UsageError, match="unknown backend of minilm-l6 'xgboost'"):
        plan.backends_of(registry.models()["minilm-l6"], ["xgboost"])


@pytest.mark.parametrize(
    ("batch", "seq", "inputs"),
    [(1, 128, 16), (32, 128, 16), (64, 128, 8), (128, 128, 4), (100_000, 0, 4), (100, 0, 16)],
)
def test_large_batches_have_fewer_inputs(batch: int, seq: int, inputs: int) -> None:
    assert plan.inputs_of(batch, seq) == inputs


def on_gpu(make: Callable[..., Record], backend: str, wall: float, cold: list[float], **more: Any) -> Any:
    """A bench record of runs on a GPU, or on the CPU where `cold` is empty."""
    runs = max(len(cold), 8)
    bench = {
        "batch": 2, "seq": 8, "lengths": "fixed", "packing": "padded", "scenario": "", "inputs": 2, "rows": 2 * runs,
        "flops": 10, "bytes_moved": 10, "kernels": None, "floor_s": 0.001, "bandwidth": 1e10, "peak": 2e11,
        "threads": 1, "affinity": [0], "denormals": "kept", "checked_runs": 8, "bad_runs": 0,
    }  # fmt: skip
    samples = {"warm_run": [wall] * runs, "cold_run": [wall] * runs}
    fields: dict[str, Any] = {"job": "bench", "task": "bert-base", "backend": backend, "bench": bench | more}
    fields |= {"config": {"batch": 2, "seq": 8, "lengths": bench["lengths"], "scenario": ""} | more}
    fields |= {"samples": samples | ({"cold_run_device": cold} if cold else {}), "gate": {"status": "passed"}}
    fields |= {
        "rows": 4 * runs,
        "device": "cuda" if cold else "cpu",
        "scores": {"cosine": 1.0},
        "metric": "cosine",
    }
    return make(**fields)


def by_column(records: Sequence[Record]) -> list[dict[str, str]]:
    """The cells of the bench table by the name of their column."""
    table = bench_table.board(records)
    return [dict(zip(table.names, line, strict=True)) for line in table.lines]


def test_on_a_gpu_the_mean_cold_device_time_ranks(make_record: Callable[..., Record]) -> None:
    steady = on_gpu(make_record, "fused", 0.02, [0.002] * 460)
    even = on_gpu(make_record, "tensorrt", 0.01, [0.001] * 450 + [0.02] * 10)  # faster by the median
    cpu = on_gpu(make_record, "onnxruntime", 0.001, [])
    boards = groups.boards([steady, even, cpu])
    assert [{r.backend for r in group} for group in boards.values()] == [
        {"onnxruntime"},
        {"fused", "tensorrt"},
    ]
    lines = by_column([steady, even])
    mean = (450 * 0.001 + 10 * 0.02) / 460  # 1.413 ms
    assert [(t["#"], t["backend"], t["cold device ms"], t["p99/mean"], t["p50 ms"]) for t in lines] == [
        ("1", "tensorrt", "1.41", f"{0.02 / mean:.3f}", "10.0"),
        ("2", "fused", "2.00", "1.000", "20.0"),
    ]
    assert lines[1]["of floor"] == "50 %"
    assert bench_table.title(steady) == "bert-base, batch 2, 8 tokens, on cuda"
    assert by_column([cpu])[0]["cold device ms"] == ""
    (few,) = by_column([on_gpu(make_record, "fused", 1, [1] * 100)])
    assert few["p99/mean"] == ""  # too few samples


def test_rows_of_real_lengths_are_ranked_by_the_row(make_record: Callable[..., Record]) -> None:
    """A packed run has more rows: it takes longer, but is faster per row."""
    padded = on_gpu(make_record, "fused", 0.02, [0.002] * 8, lengths="real", packing="padded")
    packed = on_gpu(make_record, "fused", 0.02, [0.004] * 8, lengths="real", packing="packed")
    packed = packed.model_copy(update={"rows": packed.rows * 4})
    assert [row.first.bench.packing for row in groups.rows([padded, packed])] == ["packed", "padded"]  # type: ignore[union-attr]


# ---- the command line ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3)).eval()
    example = {"x": np.zeros((2, 6), dtype="float32")}
    path = tmp_path_factory.mktemp("net") / "net.onnx"
    path.write_bytes(export(Plan(model, example, ("y",), {"x": {0: "batch"}}, "fp32", "cpu", 1)))
    return path


def bench(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "buzzer", "bench", *arguments]
    environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "BUZZER_ENFORCEMENT": "polled"}
    environment["BUZZER_CACHE"] = str(cwd / "cache")
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False, env=environment)


def test_a_file_is_benched_from_end_to_end(net: Path, tmp_path: Path) -> None:
    quick = ("--batch", "3", "--inputs", "2", "--count", "8", "--seconds", "0", "--rounds", "1")
    done = bench(
        str(net), "--backend", "onnxruntime,tensorrt", "--precision", "fp32", *quick, "--json", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    printed = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(r["rank"], r["backend"], r["outcome"]) for r in printed] == [
        (1, "onnxruntime", "ok"),
        (None, "tensorrt", "unsupported"),
    ]
    first = printed[0]
    assert first["gate"]["status"] == "passed"
    assert first["scores"]["cosine"] == pytest.approx(1.0)
    assert len(first["samples"]["warm_run"]) == len(first["samples"]["cold_run"]) == 8
    assert first["rows"] == 3 * 16
    assert first["bench"]["flops"] == 2 * 3 * (6 * 16 + 16 * 3)
    assert first["bench"]["floor_s"] > 0
    assert {p["name"] for p in first["phases"]} == {
        *("start", "load", "compile", "warmup", "warm", "cold", "unseen", "score")
    }
    written = [record.read(path) for path in record.paths([tmp_path / "results" / "local"])]
    assert len(written) == 2
    assert all(r.job == "bench" for r in written)
    lines = bench_table.board(written).lines
    assert [line[0] for line in lines] == ["1", ""]
    assert lines[1][-1] == "unsupported: backend tensorrt needs the package tensorrt"


def test_a_run_with_a_record_is_skipped(net: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.random.default_rng(0).normal(size=(4, 6)))
    quick: dict[str, Any] = {"backends": "onnxruntime", "precisions": "fp32", "batches": 2, "count": 4}
    request = BenchRequest(net, **quick, seconds=0, rounds=1, inputs=str(tmp_path / "a.npz"), resume=True)
    (first,) = buzzer.bench(request, out=tmp_path / "out", observer=Quiet())
    (again,) = buzzer.bench(request, out=tmp_path / "out", observer=Quiet())
    assert first.run_id == again.run_id
    assert first.data_source == "official"
    assert len(record.paths([tmp_path / "out"])) == 1


def test_only_the_content_of_inputs_distinguishes_tables(
    tmp_path: Path, make_record: Callable[..., Record]
) -> None:
    for name, seed in (("a", 0), ("b", 1), ("c", 0)):
        np.savez(tmp_path / f"{name}.npz", x=np.random.default_rng(seed).normal(size=(4, 6)))
    files = {name: {"inputs": str(tmp_path / f"{name}.npz")} for name in "abc"}
    configs = {name: plan.task_of(select(model="bert-base", **more)).params for name, more in files.items()}
    assert configs["a"]["seq"] == 0
    records = [on_gpu(make_record, "onnxruntime", 0.01, []) for _ in configs]
    for r, config in zip(records, configs.values(), strict=True):
        r.config.update(config)
    boards = groups.boards(records).values()
    assert sorted(len(board) for board in boards) == [1, 2]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"inputs": "missing.npz"}, "neither a number nor a file"),
        ({"model": "gbdt", "backends": "xgboost", "inputs": __file__}, "gbdt makes its own inputs"),
        ({"inputs": __file__, "lengths": "real"}, "sets the lengths of rows"),
        ({"inputs": 1}, "inputs is 1; it must be from 2 to 4,096"),
        ({"mlperf": "bert"}, "--mlperf is for a scenario"),
    ],
)
def test_wrong_inputs_and_settings_are_refused_before_a_run(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        select(**changes)


def test_a_search_for_a_rate_is_another_job_than_a_rate() -> None:
    server = {"scenario": "server", "precisions": ["fp32"]}
    assert select(**server).params()["rate"] == "highest"
    assert "rate" not in select(**server, qps=3.0).params()
    assert "rate" not in select(scenario="offline", precisions=["fp32"]).params()


def test_boosted_trees_are_planned_in_fp32_only() -> None:
    planned = plan.plan(select(model="gbdt", backends=["onnxruntime"], precisions="all"))
    assert {item.run.precision for item in planned} == {"fp32"}


def saved(module: torch.nn.Module, path: Path, rows: int | None = None) -> Path:
    """Write an ONNX file with one input, whose number of rows is dynamic or fixed."""
    path.parent.mkdir(exist_ok=True)
    example = {"x": np.zeros((rows or 2, 6), dtype="float32")}
    axes: dict[str, dict[int, str]] = {"x": {} if rows else {0: "batch"}}
    path.write_bytes(export(Plan(module.eval(), example, ("y",), axes, "fp32", "cpu", 1)))
    return path


def test_files_of_one_name_have_boards_of_their_own(
    tmp_path: Path, make_record: Callable[..., Record]
) -> None:
    """This also holds if the name is that of a known model."""
    paths = [saved(torch.nn.Linear(6, 3), tmp_path / folder / "bert-base.onnx") for folder in "ab"]
    tasks = [plan.task_of(select(model=str(path), backends="onnxruntime")) for path in paths]
    hashes = [task.params["model_hash"] for task in tasks]
    records = [on_gpu(make_record, "onnxruntime", 0.01, []) for _ in paths]
    for r, model_hash in zip(records, hashes, strict=True):
        r.config["model_hash"] = model_hash
    boards = groups.boards(records)
    assert len(set(hashes)) == len(boards) == 2
    assert {bench_table.title(group[0]) for group in boards.values()} == {
        f"bert-base ({model_hash}), batch 2, 8 tokens" for model_hash in hashes
    }
    copied = tmp_path / "c.onnx"
    copied.write_bytes(paths[0].read_bytes())
    assert identity.of_path(copied) == hashes[0]
    eager = on_gpu(make_record, "torch_eager", 0.01, [])
    assert groups.rows([eager])[0].is_base
    trees = eager.model_copy(update={"task": "gbdt", "backend": "xgboost"})
    assert groups.rows([trees])[0].is_base
    trees.config["model"] = {"path": str(tmp_path / "gbdt.onnx")}  # a file that is called gbdt
    assert not groups.rows([trees])[0].is_base
    assert "model_hash" not in plan.task_of(select()).params


def test_two_weights_of_one_name_are_two_models(tmp_path: Path, make_record: Callable[..., Record]) -> None:
    """The hash of a named model is known once its reference outputs are: runs after that have it among their parameters."""
    [planned, *_] = plan.plan(select(precisions=["fp32"]))
    workload = bench_runs.BenchWorkload(tmp_path, tmp_path)
    assert "model_hash" not in workload.resolved(planned.run).task.params
    records = []
    for model_hash in ("abc", "def"):
        workload.model_hash = model_hash
        run = workload.resolved(planned.run)
        r = on_gpu(make_record, "torch_eager", 0.01, [])
        records.append(r.model_copy(update={"config": run.task.params, "config_hash": run.task.config_hash}))
    assert [r.config["model_hash"] for r in records] == ["abc", "def"]
    assert records[0].config_hash != records[1].config_hash
    assert {bench_table.title(group[0]).split(",")[0] for group in groups.boards(records).values()} == {
        "bert-base (abc)",
        "bert-base (def)",
    }
    assert comparable.question(records[0]) != comparable.question(records[1])
    file = plan.task_of(
        select(model=str(saved(torch.nn.Linear(6, 3), tmp_path / "net.onnx")), backends="onnxruntime")
    )
    of_file = replace(planned.run, task=file)
    assert workload.resolved(of_file).task == file


def test_weights_beside_a_file_are_part_of_it(tmp_path: Path) -> None:
    import onnx

    files = []
    for folder, value in (("a", 1.0), ("b", 2.0)):
        path = saved(torch.nn.Linear(6, 3), tmp_path / folder / "net.onnx")
        model = onnx.load(str(path))
        for weight in model.graph.initializer:
            shape = tuple(weight.dims)
            weight.CopyFrom(onnx.numpy_helper.from_array(np.full(shape, value, "float32"), weight.name))
        onnx.save(model, str(path), save_as_external_data=True, location="weights.bin", size_threshold=0)
        files.append(path)
    assert files[0].read_bytes() == files[1].read_bytes()
    assert identity.of_path(files[0]) != identity.of_path(files[1])
    (tmp_path / "b" / "weights.bin").unlink()
    with pytest.raises(DataError, match=r"weights\.bin"):
        identity.of_path(files[1])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"batches": 2}, "fixed number of rows, 4"),
        ({"batches": 4, "lengths": "real"}, "the rows of net have no tokens"),
        ({"batches": 4, "inputs": "rows.npy"}, r"x is float32 \[3, 5\]"),
        ({"batches": 4, "scenario": "server"}, "single samples"),
        ({"batches": 4, "scenario": "offline", "mlperf": "nosuch"}, "no settings for a model nosuch"),
        ({"model": "gbdt", "lengths": "real"}, "the rows of gbdt have no tokens"),
    ],
)
def test_a_wrong_request_starts_no_process(
    changed: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "scenario" in changed:
        pytest.importorskip("mlperf_loadgen")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(runner, "bench", lambda *_: pytest.fail("a process was started"))
    np.save("rows.npy", np.zeros((3, 5), "float32"))
    saved(torch.nn.Linear(6, 3), tmp_path / "net.onnx", rows=4)
    with pytest.raises(UsageError if "inputs" not in changed else DataError, match=message):
        buzzer.bench(BenchRequest(**{"model": "net.onnx", "seq": 8} | changed), out=tmp_path / "out")


def test_a_fixed_batch_is_not_called_another(tmp_path: Path) -> None:
    path = saved(torch.nn.Linear(6, 3), tmp_path / "fixed.onnx", rows=4)
    spec = BenchSpec(4, 128, 2, "fixed", "padded", 0, {"path": str(path)})
    assert ONNX_FILE.load(spec).rows == [4, 4]
    with pytest.raises(UsageError, match="the file's inputs have a fixed number of rows, 4") as caught:
        ONNX_FILE.load(replace(spec, batch=2))
    assert caught.value.hint == "use --batch 4"
    opened = saved(torch.nn.Linear(6, 3), tmp_path / "open.onnx")
    assert ONNX_FILE.load(replace(spec, batch=2, params={"path": str(opened)})).rows == [2, 2]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("net.onnx",), "no such file or folder"),
        (("bert-bas",), "did you mean bert-base"),
        (("bert-base", "--precision", "int9"), "did you mean int8"),
        (("bert-base", "--backend", "openvin"), "did you mean openvino"),
        (("bert-base", "--scenario", "multi"), "unknown scenario"),
    ],
)
def test_unknown_names_end_in_a_hint(
    arguments: tuple[str, ...], text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    error = CliRunner().invoke(app, ["bench", *arguments]).exception
    assert isinstance(error, BuzzerError)
    assert text in f"{error.message}\n{error.hint}"
    assert not list(tmp_path.iterdir())


def test_a_broken_file_ends_in_one_message(tmp_path: Path) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"no graph")
    done = bench("bad.onnx", "--backend", "onnxruntime", cwd=tmp_path)
    assert done.returncode == 2
    assert "not an ONNX model" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(importlib.util.find_spec("mlperf_loadgen") is None, reason="needs the mlperf extra")
@pytest.mark.parametrize("scenario", ["single-stream", "offline", "server"])
def test_loadgen_gives_its_verdict(scenario: str, tmp_path: Path) -> None:
    from buzzer.suite.bench import loadgen

    loaded = target(4)
    batch = 2 if scenario == "offline" else 1
    if batch == 1:
        batches = [{"x": b["x"][:1]} for b in loaded.batches]
        loaded = BenchModel(None, ("y",), batches, loaded.reference, [1] * 4)
    check = Check(loaded, [dict(loaded.reference(b)) for b in loaded.batches])
    settings = Scenario(scenario, batch, min_duration=0.05, qps=200.0, bound=100.0, seeds=[1, 2, 3])
    rows, verdict = loadgen.run(Good(), loaded, check, settings, tmp_path)  # type: ignore[arg-type]
    assert rows >= 8
    assert verdict.result in ("VALID", "INVALID")
    assert verdict.summary["Scenario"] == loadgen.NAMES[scenario]
    assert [verdict.summary[name] for name in loadgen.SEEDS] == ["1", "2", "3"]
    assert "not given" not in verdict.line
    assert 0 < loadgen.row_s(verdict.summarised(), scenario) < math.inf
    unit = " ms" if scenario == "single-stream" else " samples/s"
    assert verdict.line.endswith(loadgen.shown_figure(verdict.summarised(), scenario))
    assert verdict.line.endswith(unit)
    text = loadgen.verdict_text(verdict.summarised(), scenario)
    assert text.startswith(f"LoadGen {verdict.result}") and text.endswith(unit)
    assert check.runs == 4
    assert check.scores()["cosine"] == pytest.approx(1.0)


class OneLane(Good):
    """A session that answers a query in 4 ms, so that no more than 250 a second can be answered."""

    def run(self, batch: Mapping[str, Array]) -> dict[str, Array]:
        time.sleep(0.004)
        return super().run(batch)


@pytest.mark.skipif(importlib.util.find_spec("mlperf_loadgen") is None, reason="needs the mlperf extra")
def test_the_rate_of_the_server_scenario_is_found(tmp_path: Path) -> None:
    from buzzer.suite.bench import loadgen

    batches = [{"x": b["x"][:1]} for b in target(4).batches]
    loaded = BenchModel(None, ("y",), batches, target().reference, [1] * 4)
    check = Check(loaded, [dict(loaded.reference(b)) for b in loaded.batches])
    settings = Scenario("server", 1, min_duration=2.0, qps=0.0, bound=1000.0, seeds=[1, 2, 3])
    _, verdict = loadgen.run(OneLane(), loaded, check, settings, tmp_path)  # type: ignore[arg-type]
    assert "found by 7 trials of 0.2 s" in verdict.notes[0]
    assert 50 < 1 / loadgen.row_s(verdict.summarised(), "server") < 250
    assert [
        path.name for path in tmp_path.glob(loadgen.LOGS)
    ]  # of the last run; those of trials are elsewhere
    assert len(list((tmp_path / "trials").iterdir())) == 7


@pytest.mark.parametrize(("capacity", "least"), [(80.0, 79.0), (99.9, 99.0), (0.1, 0.0)])
def test_the_search_comes_near_the_highest_rate(capacity: float, least: float, tmp_path: Path) -> None:
    """Of a server that keeps its bound at exactly the rates up to `capacity`; 100 a second are possible one after another."""
    from buzzer.suite.bench import loadgen

    test = SimpleNamespace(min_duration_ms=60_000, server_target_qps=0.0, server_target_latency_ns=10**6)

    def measure(folder: Path) -> loadgen.Verdict:
        assert test.min_duration_ms == 6_000
        p99 = 10**6 if test.server_target_qps <= capacity else 10**6 + 1
        return loadgen.Verdict("INVALID", {"99.00 percentile latency (ns)": str(p99)}, "")

    rate, note = loadgen.highest_rate(test, 100.0, tmp_path, measure)
    assert least <= rate <= max(capacity, 100 / 2**loadgen.STEPS)
    assert test.min_duration_ms == 60_000
    assert note.endswith("below 100/s one after another")


@pytest.mark.skipif(importlib.util.find_spec("mlperf_loadgen") is None, reason="needs the mlperf extra")
@pytest.mark.parametrize(
    ("model", "error"), [("bert", ""), ("bort", "LoadGen has no settings for a model bort")]
)
def test_mlperfs_own_settings(model: str, error: str, tmp_path: Path) -> None:
    """In a process of its own, because LoadGen reads its settings once in a process."""
    code = (
        "import sys; from pathlib import Path; import mlperf_loadgen as lg\n"
        "from buzzer.suite.bench import loadgen\n"
        "ask = loadgen.Scenario('server', 1, 1.0, 5.0, 1.0, [0, 0, 0], sys.argv[1])\n"
        "test = loadgen.settings(lg, ask, 10.0, Path(sys.argv[2]))\n"
        "print(test.min_duration_ms, test.server_target_latency_ns, test.server_target_qps, test.qsl_rng_seed > 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, model, str(tmp_path)], capture_output=True, text=True, check=False
    )
    if error:
        assert error in done.stderr
        return
    assert done.stdout == "600000 130000000 5.0 True\n", done.stderr


@pytest.mark.skipif(importlib.util.find_spec("mlperf_loadgen") is None, reason="needs the mlperf extra")
def test_a_failure_inside_loadgen_is_raised(tmp_path: Path) -> None:
    from buzzer.suite.bench import loadgen

    class Broken(Good):
        def run(self, batch: Mapping[str, Array]) -> dict[str, Array]:
            if len(self.calls) > 20_000 or len(list(tmp_path.iterdir())):
                raise RuntimeError("broken")
            return super().run(batch)

    batches = [{"x": b["x"][:1]} for b in target(4).batches]
    loaded = BenchModel(None, ("y",), batches, target().reference, [1] * 4)
    check = Check(loaded, [])
    settings = Scenario("single-stream", 1, min_duration=0.05, qps=0.0, bound=100.0, seeds=[0, 0, 0])
    with pytest.raises(RuntimeError, match="broken"):
        loadgen.run(Broken(), loaded, check, settings, tmp_path)  # type: ignore[arg-type]


def test_loadgens_figure_ranks_and_invalid_runs_do_not(make_record: Callable[..., Record]) -> None:
    def run_of(backend: str, scenario: str, result: str, figure: float) -> Record:
        names = {
            "single-stream": "Early stopping 90.0th percentile estimate",
            "offline": "Samples per second",
            "server": "Completed samples per second",
        }
        verdict = {"result": result, "line": "", "summary": {names[scenario]: str(figure)}}
        run = on_gpu(make_record, backend, 0.01, [], scenario=scenario, loadgen=verdict)
        return run.model_copy(update={"samples": {}})

    for scenario, figures in (
        ("single-stream", (3e6, 2e6, 1e6)),
        ("offline", (10, 20, 30)),
        ("server", (10, 20, 30)),
    ):
        runs = [
            run_of("torch_eager", scenario, "VALID", figures[0]),
            run_of("onnxruntime", scenario, "VALID", figures[1]),
            run_of("openvino", scenario, "INVALID", figures[2]),
        ]
        lines = by_column(runs)
        unit = "ms" if scenario == "single-stream" else "samples/s"
        assert all(line["LoadGen"].endswith(f" {unit}") for line in lines)
        assert [(line["#"], line["backend"], line["outcome"]) for line in lines] == [
            ("1", "onnxruntime", "ok"),
            ("2", "torch_eager", "ok"),
            ("", "openvino", "LoadGen: INVALID"),
        ]


def test_logs_of_loadgen_stay_beside_the_records(tmp_path: Path) -> None:
    written, kept = tmp_path / "written", tmp_path / "files" / "a"
    written.mkdir()
    keep_logs(written, kept)
    assert not kept.exists()
    for name in ("mlperf_log_summary.txt", "mlperf_log_detail.txt", "other.txt"):
        (written / name).write_text(name)
    keep_logs(written, kept)
    assert sorted(path.name for path in kept.iterdir()) == ["mlperf_log_detail.txt", "mlperf_log_summary.txt"]
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot create"):
        keep_logs(written, tmp_path / "file" / "a")


@pytest.mark.parametrize(
    "text", ["", "1,2", "1,2,3,4", "1,2,x", "-1,2,3", "1,2,18446744073709551616", "１,2,3"]
)
def test_seeds_of_loadgen(text: str) -> None:
    assert seeds_of("0, 1,18446744073709551615") == [0, 1, 2**64 - 1]
    with pytest.raises(UsageError, match="not three whole numbers"):
        seeds_of(text)


def test_scenarios_are_shown_without_timed_runs() -> None:
    """Tested with the published records. LoadGen measures its own times."""
    published = load_records(ROOT / "results")
    benches = [r for r in published if r.job == "bench" and r.config["scenario"]]
    assert {r.config["scenario"] for r in benches} == {"single-stream", "offline", "server"}
    assert bench_table.fastest(benches) == []


# ---- sessions that cache answers ----------------------------------------------------------------------------------

WORK_S = 0.004


class Works(Good):
    """Takes `WORK_S` seconds for each input."""

    def run(self, batch: Mapping[str, Array]) -> dict[str, Array]:
        time.sleep(WORK_S)
        return super().run(batch)


class Keeps(Works):
    """Caches its last `size` answers by the values of the inputs."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size, self.kept = size, dict[bytes, Array]()

    def run(self, batch: Mapping[str, Array]) -> dict[str, Array]:
        key = batch["x"].tobytes()
        answer = self.kept.pop(key) if key in self.kept else super().run(batch)["y"]
        self.kept[key] = answer
        if len(self.kept) > self.size:
            del self.kept[next(iter(self.kept))]
        return {"y": answer.copy()}


class KeepsByTheFirstValues(Keeps):
    """Takes inputs with the same first value for the same input."""

    def run(self, batch: Mapping[str, Array]) -> dict[str, Array]:
        key = batch["x"].reshape(-1)[:1].tobytes()
        if key not in self.kept:
            self.kept[key] = 2 * batch["x"]
        return {"y": self.kept[key].copy()}


@pytest.mark.parametrize("inputs", [2, 3, 16])
@pytest.mark.parametrize(
    ("make", "keeps"), [(Works, False), *((lambda n=n: Keeps(n), True) for n in (1, 2, 16, 10_000))]
)
def test_a_session_that_caches_answers_is_detected(make: Callable[[], Any], keeps: bool, inputs: int) -> None:
    loaded = target(inputs)
    loaded = replace(loaded, unseen=altered(loaded.batches))
    check = Check(loaded, [dict(loaded.reference(b)) for b in answers_cache.every_input(loaded)])
    timer = Timer(make(), loaded, check, "cpu")
    timer.measure(Sampling(inputs, 0.0, 60.0), no_flush)
    new, again = timer.unseen()
    assert len(new) == len(again) == min(max(inputs, LEAST_PROBES), PROBES)
    assert bool(gate.caches_outputs({"unseen_run": new, "seen_run": again})) == keeps
    assert (check.bad, check.cosine) == (0, pytest.approx(1.0))


def test_a_session_that_takes_new_inputs_for_known_ones_is_wrong() -> None:
    loaded = target(4)
    loaded = replace(loaded, unseen=altered(loaded.batches))
    check = Check(loaded, [dict(loaded.reference(b)) for b in answers_cache.every_input(loaded)])
    timer = Timer(KeepsByTheFirstValues(16), loaded, check, "cpu")
    timer.measure(Sampling(4, 0.0, 60.0), no_flush)
    assert check.cosine == pytest.approx(1.0)
    timer.unseen()
    assert check.cosine < 0.99


def test_a_bench_run_that_caches_answers_is_wrong(make_record: Callable[..., Record]) -> None:
    right = {"cosine": 1.0, "max_relative_error": 0.0, "argmax_agreement": 1.0}
    for new, status in ((0.020, "failed"), (0.0015, "passed")):
        samples = {"unseen_run": [new] * 8, "seen_run": [0.001] * 8}
        run = Record.model_construct(precision="fp32", scores=right, bench=None, samples=samples)
        judged = gate.judge_bench(run, **registry.bench_gate("fp32"))
        assert judged.gate.status == status
        assert ("20 ms on unseen inputs, 1 ms" in getattr(judged, "message", "")) == (status == "failed")


@pytest.mark.parametrize("new, again, keeps", [
    ([5.0] * 6 + [1.0] * 2, [1.0] * 8, True),
    ([5.0] * 5 + [1.0] * 3, [1.0] * 8, False),
    ([1.9] * 8, [1.0] * 8, False),
    ([], [], False),
])  # fmt: skip
def test_a_few_slow_runs_are_not_taken_for_a_cache(new: list[float], again: list[float], keeps: bool) -> None:
    assert bool(gate.caches_outputs({"unseen_run": new, "seen_run": again})) == keeps


def test_altered_inputs_keep_rows_columns_and_sizes() -> None:
    """New values come from the same column; batches of a size that no other batch has are left out."""
    batches = [{"ids": n + np.array([[0, 100, 200]] * 2), "mask": np.ones((2, 3))} for n in range(3)]
    alone = {"ids": np.zeros((2, 5)), "mask": np.ones((2, 5))}
    unseen = altered([*batches, alone])
    assert [number for number, _ in unseen] == [0, 1, 2, 0]
    seen = [b["ids"].tobytes() for b in batches]
    for number, batch in unseen:
        assert batch["ids"].tobytes() not in seen
        seen.append(batch["ids"].tobytes())
        assert np.array_equal(batch["mask"], batches[number]["mask"])
        assert (batch["ids"] // 100 == [[0, 1, 2]] * 2).all()
        assert batch["ids"][0, 0] == batches[number]["ids"][0, 0]
    assert altered([batches[0], batches[0]]) == []


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("kind", ["float16", "float32", "float64"])
def test_values_that_are_not_finite_never_pass(value: float, kind: str) -> None:
    """Neither as an output nor as a reference output."""
    good = np.array([[1.0, 2.0]], kind)
    bad = np.array([[1.0, value]], kind)
    loaded = BenchModel(None, ("y",), [{"x": good}], lambda b: {}, [1])
    for want, got in ((good, bad), (bad, good), (bad, bad)):
        check = Check(loaded, [{"y": want}])
        check.add(0, {"y": got.copy()})
        assert check.cosine == WORST


def test_large_values_have_a_cosine() -> None:
    wide = np.array([[1e200, 2e200]])
    assert least_cosine(wide, 3 * wide) == pytest.approx(1.0)
    assert least_cosine(wide, np.array([[2e200, -1e200]])) == pytest.approx(0.0)
