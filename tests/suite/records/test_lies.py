"""False records with matching hashes: `buzzer check` detects each, and a report leaves it out."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from buzzer.suite import registry
from buzzer.suite.cli import app
from buzzer.suite.records import integrity, record

ROOT = Path(__file__).parents[3]
Fields = dict[str, Any]
WORK = {"trees": 360.0, "tree_nodes": 1800.0, "network_flops": 4e4, "table_rows": 120_000}
GPU = {"name": "a GPU", "memory_bytes": 8 * 10**9, "driver": "1"}


@pytest.fixture(scope="module")
def real() -> dict[str, Fields]:
    """Real records: a reference, a run that was compared with it, a run that was not started, and a bench run."""
    kept: dict[str, Fields] = {}
    for path in record.paths([ROOT / "results"]):
        r = json.loads(path.read_text())
        kept[r["run_id"]] = r
    passed = next(
        r
        for r in kept.values()
        if r["task"] == "booking" and r["gate"]["status"] == "passed" and r["job"] == "predict"
    )
    bench = next(
        r
        for r in kept.values()
        if (r["job"], r["task"], r["backend"], r["outcome"]) == ("bench", "bert-base", "torch_eager", "ok")
        and "warm_run" in r["samples"]
    )
    unstarted = next(r for r in kept.values() if r["enforcement"] == "none")
    return {
        "reference": kept[passed["gate"]["reference_run"]],
        "passed": passed,
        "bench": bench,
        "unstarted": unstarted,
    }


def put(at: str, value: Any) -> Callable[[Fields], None]:
    """A lie that sets one field, such as `budget.cores`."""
    *path, last = at.split(".")

    def lie(r: Fields) -> None:
        for key in path:
            r = r[key]
        r[last] = value(r[last]) if callable(value) else value

    return lie


def faster(r: Fields) -> None:
    """Claim more rows than the reference had, and so a higher throughput."""
    r["rows"] *= 10


def other_backend(r: Fields) -> None:
    r["backend"] = "onnxruntime"


def own_reference(r: Fields) -> None:
    r["gate"] = {"status": "reference", "reference_run": None, "differences": {}}


def better(r: Fields) -> None:
    """Claim a better score than the compared one."""
    r["scores"] = {name: value + 0.004 for name, value in r["scores"].items()}


def silent(r: Fields) -> None:
    r["gate"]["differences"] = {}


def not_started(r: Fields) -> None:
    r["enforcement"] = "none"


def unlimited(r: Fields) -> None:
    r["budget"] |= {"time_s": None, "memory_bytes": None}


def late(r: Fields) -> None:
    r |= {"outcome": "timeout", "message": "the buzzer went", "gate": {"status": "unscored"}}


def failed(r: Fields) -> None:
    r |= {"outcome": "error", "message": "it broke"}


def on_gpu(r: Fields) -> None:
    r |= {"device": "cuda", "gpu_busy_s": 1.0, "gpu_peak_memory_bytes": 10**9}


def gpu_busy(r: Fields) -> None:
    on_gpu(r)
    r["machine"]["gpus"] = [GPU]
    r["gpu_busy_s"] = 10 * r["wall_s"] + 10


def gpu_peak(r: Fields) -> None:
    on_gpu(r)
    r["machine"]["gpus"] = [GPU]
    r["gpu_peak_memory_bytes"] = 10**11


def gpu_engine(r: Fields) -> None:
    r["engine"] = "cudf"


def phase_after_score(r: Fields) -> None:
    r["phases"].insert(0, r["phases"].pop())


def fewer_runs(r: Fields) -> None:
    """Remove half of the laps and keep all rows, which doubles the throughput."""
    r["samples"]["warm_run"] = r["samples"]["warm_run"][::2]


def quick_runs(r: Fields) -> None:
    r["samples"]["warm_run"] = [s / 1000 for s in r["samples"]["warm_run"]]


def slow_runs(r: Fields) -> None:
    r["samples"]["warm_run"] = [s * 10 for s in r["samples"]["warm_run"]]


def started_twice(r: Fields) -> None:
    """Hide that a run was interrupted."""
    r["samples"]["start"] = [r["phases"][0]["wall_s"] / 2] * 2


LIES: dict[str, tuple[str, Callable[[Fields], None], str]] = {
    "reference on another variant": ("passed", own_reference, "gate reference, but the reference of booking is"),
    "reference on another backend": ("reference", other_backend, "gate reference, but"),
    "unknown reference_run": ("passed", put("gate.reference_run", "0" * 32), "not among these records"),
    "reference_run is itself": ("passed", lambda r: put("gate.reference_run", r["run_id"])(r), "is not a reference run"),
    "no differences": ("passed", silent, "differs by nan"),
    "a score made better": ("passed", better, "the records say"),
    "more rows": ("passed", faster, "rows, its reference_run"),
    "never started": ("passed", not_started, "without enforcement"),
    "figures of a run never started": ("unstarted", put("wall_s", 3.0), "enforcement none, but wall time"),
    "a run never started that is ok": ("unstarted", put("outcome", "wrong"), "it was never started"),
    "CPU time beyond the cores": ("passed", put("cpu_s", lambda v: 10 * v + 10), "CPU seconds of 1 core in"),
    "CPU time of a phase": ("passed", put("phases", lambda v: [v[0] | {"cpu_s": 1e4}, *v[1:]]), "phase start took"),
    "64 cores under one core's name": ("passed", put("budget.cores", 64), "budget seed-cpu means 1 core,"),
    "another time under a budget's name": ("passed", put("budget.time_s", 10.0 * 86400), "budget seed-cpu means"),
    "no limits under a budget's name": ("passed", unlimited, "the record has 1 core"),
    "an unknown budget": ("passed", put("budget.name", "seed-gpu"), "neither a known name"),
    "more memory than the machine": ("bench", put("peak_memory_bytes", 10**12), "bytes on a machine of"),
    "no memory at all": ("passed", put("peak_memory_bytes", 0), "a peak of 0 bytes"),
    "a timeout before its time": ("passed", late, "timeout after"),
    "an error that passed": ("passed", failed, "gate passed, outcome error"),
    "ok with an error message": ("passed", put("message", "killed"), "ok with a message"),
    "an unknown engine": ("passed", put("engine", "duckdb"), "booking has no duckdb"),
    "a GPU engine on the CPU": ("passed", gpu_engine, "engine cudf on the CPU"),
    "a GPU that the machine does not have": ("passed", on_gpu, "a machine without one"),
    "a GPU busier than the clock": ("passed", gpu_busy, "the GPU was busy for"),
    "more GPU memory than there is": ("passed", gpu_peak, "of GPU memory, the machine has"),
    "a share above one": ("reference", put("scores", lambda v: v | {"accuracy@4": 1.5}), "score accuracy@4 is 1.5"),
    "ranked by another score": ("reference", put("metric", "accuracy@4_mlp"), "is ranked by accuracy@4"),
    "an unknown precision": ("passed", put("precision", "fp3"), "booking has no fp3"),
    "a cluster of one process": ("passed", put("cluster", "2 workers"), "it runs in one process"),
    "an unknown last phase": ("passed", put("phase_reached", "dance"), "ok in phase dance"),
    "an error with scores": ("passed", failed, "outcome error with scores"),
    "less CPU time than its phases": ("passed", put("cpu_s", 0.01), "CPU seconds, all of it 0.0"),
    "a comparison that was not made": ("passed", put("gate.status", "unscored"), "gate unscored with a comparison"),
    "less memory than its phases": ("passed", put("peak_memory_bytes", 10**6), "bytes, a phase had"),
    "a published figure": ("passed", put("published", True), "published, so not measured"),
    "no rows": ("reference", put("rows", 0), "the task predicted no rows"),
    "wrong without a message": ("passed", put("outcome", "wrong"), "outcome wrong without a message"),
    "a phase after score": ("passed", phase_after_score, "after phase score"),
    "a commit that is not a hash": ("passed", put("git_commit", "main"), "git_commit is not a commit"),
    "from the future": ("passed", put("created", "2199-01-01T00:00:00Z"), "created in the future"),
    "generated data called official": ("passed", put("data_source", "official"), "data_source differ"),
    "nodes of no trees": ("passed", put("work", WORK | {"trees": 0.0}), "1800 nodes for a row in no trees"),
    "bench: work for a row": ("bench", put("work", WORK), "work for a row in job bench"),
    "sittings of a task without them": ("passed", put("sittings", 2), "2 sittings, but booking cannot be resumed"),
    "more starts than sittings": ("passed", started_twice, "2 starts in 1 sittings"),
    "bench: sittings": ("bench", put("sittings", 2), "2 sittings of a run of job bench"),
    "bench: fewer runs": ("bench", fewer_runs, "rows in"),
    "bench: faster than the peak": ("bench", quick_runs, "times the measured peak"),
    "bench: runs longer than their phase": ("bench", slow_runs, "warm runs of"),
    "bench: a lower floor": ("bench", put("bench.floor_s", lambda v: v / 2), "bytes and FLOPs make"),
    "bench: a larger batch": ("bench", put("bench.batch", 64), "the config has 1"),
    "bench: a passed gate": ("bench", put("scores.cosine", 0.5), "but by its scores it is failed"),
    "bench: a reference": ("bench", put("gate.status", "reference"), "gate reference of a bench run"),
    "bench: bad runs": ("bench", put("bench.bad_runs", 3), "with 3 bad runs"),
    "bench: more threads than cores": ("bench", put("bench.threads", 64), "64 threads on 2 cores"),
    "bench: no figures": ("bench", put("bench", None), "without figures"),
}  # fmt: skip


def forged(fields: Fields, folder: Path, name: str) -> Path:
    fields["config_hash"] = registry.params_hash(fields["config"])
    fields["content_hash"] = record.content_hash(fields)
    path = folder / f"{name}.json"
    path.write_text(json.dumps(fields))
    return path


@pytest.mark.parametrize("name", LIES)
def test_a_lie_is_detected(real: dict[str, Fields], tmp_path: Path, name: str) -> None:
    of, lie, message = LIES[name]
    fields = json.loads(json.dumps(real[of]))
    lie(fields)
    path = forged(fields, tmp_path, "lie")
    others = [key for key in ("reference", "passed") if real[key]["run_id"] != fields["run_id"]]
    for key in others:
        forged(json.loads(json.dumps(real[key])), tmp_path, key)
    problems = integrity.check(record.paths([tmp_path]))
    assert message in "; ".join(problems[path])
    assert problems[path]


def test_without_a_lie_no_problem_is_reported(real: dict[str, Fields], tmp_path: Path) -> None:
    for name, fields in real.items():
        forged(json.loads(json.dumps(fields)), tmp_path, name)
    assert not any(integrity.check(record.paths([tmp_path])).values())


def test_a_report_leaves_lies_out_and_says_so(
    real: dict[str, Fields], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    forged(json.loads(json.dumps(real["reference"])), tmp_path, "reference")
    good = CliRunner().invoke(app, ["report", "."])
    lie = json.loads(json.dumps(real["passed"])) | {"run_id": "1" * 32, "rows": 1}
    forged(lie, tmp_path, "lie")
    both = CliRunner().invoke(app, ["report", "."])
    assert (both.exit_code, both.stdout) == (0, good.stdout)
    assert "left out: lie.json: it predicted 1 rows" in both.stderr


@pytest.mark.parametrize("beside", [True, False])
def test_a_pass_needs_its_reference(real: dict[str, Fields], tmp_path: Path, beside: bool) -> None:
    """A single record may be checked alone. In a set or a report, its reference must be in the set or in its folder."""
    path = forged(json.loads(json.dumps(real["passed"])), tmp_path, "passed")
    if beside:
        forged(json.loads(json.dumps(real["reference"])), tmp_path, f"x-{real['reference']['run_id'][:8]}")
    assert integrity.examine([path], whole=True).problems[path] == [] if beside else True
    assert bool(integrity.examine([path], whole=True).problems[path]) is not beside
    alone = integrity.examine([path], whole=False)
    assert alone.problems[path] == []
    assert (alone.unseen == [path]) is not beside
