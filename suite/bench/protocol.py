"""The bench protocol, in the child: one model on one backend, its inputs rotating, its outputs checked run by run.

`fit` computes the right answers, where they are not in the cache, and the machine's roof once for all backends; `bench` times one of them.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from buzzer.engine import infer
from buzzer.engine.infer import Array, Session, roofline
from buzzer.engine.infer.cost import Cost, cost_of
from buzzer.engine.infer.roofline import Roof
from buzzer.engine.infer.session import Description, Staging
from buzzer.errors import DataError
from buzzer.models.api.bench import BenchModel, BenchSpec, ModelProvider, altered, stamp
from buzzer.models.api.context import Result, RunContext, Steps
from buzzer.suite.bench import answers_cache
from buzzer.suite.bench.answers_cache import Answers
from buzzer.suite.run.worker import load_entry

FLUSH = 4  # times the last-level cache, streamed over before a cold run
WARMUP_S, WARMUP_RUNS = 1.0, 5
LEAST_RUNS = 4  # however slow: two rounds have the seven of a median
COMPILED = ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")
QUANTISED = ("int8", "fp8")  # precisions for which the module is quantised before the backend gets it
SAME = 1e-3  # largest relative error between the FP32 answers of a GPU and of the CPU
TINY = 1e-30
WORST = -1.0  # cosine of an output that is not finite or was not written


@dataclass(frozen=True)
class Setting:
    """The target, what is asked of it, and the folder of what is kept for this model at these sizes."""

    target: ModelProvider
    ask: BenchSpec
    kept: Path

    @classmethod
    def of(cls, job: RunContext) -> "Setting":
        target: ModelProvider = load_entry(job.params["target"])  # type: ignore[assignment]
        names = ("batch", "seq", "inputs", "lengths", "packing")
        own = {"params": job.params["model"], "work": job.work.parent, "threads": job.threads}
        ask = BenchSpec(**{n: job.params[n] for n in names}, seed=job.seed, **own)
        return cls(target, ask, answers_cache.folder(job, target, ask))

    def load(self) -> BenchModel:
        """The target's model and inputs, with those that no timed run has."""
        loaded = self.target.load(self.ask)
        return replace(loaded, unseen=altered(loaded.batches))


@dataclass
class Check:
    """Holds outputs against the right ones, and keeps the worst.

    It fills each array it has seen with NaN, so that a backend which hands out the same buffer again without writing
    it is found out. An output that is bit by bit one that was compared before is not compared again.
    """

    loaded: BenchModel
    expected: list[dict[str, Array]]
    cosine: float = 1.0
    error: float = 0.0
    hits: int = 0
    rows: int = 0
    bad: int = 0
    runs: int = 0
    _known: dict[tuple[int, str], tuple[Array, int, int]] = field(default_factory=dict)  # output, hits, rows

    def take(self, index: int, outputs: Mapping[str, Array]) -> None:
        self.runs += 1
        found = [self.compare(index, name, outputs[name]) for name in self.loaded.outputs]
        self.bad += not all(found)
        for array in outputs.values():
            if array.dtype.kind == "f" and array.flags.writeable:
                array.fill(np.nan)

    def compare(self, index: int, name: str, got: Array) -> bool:
        """Whether one output is finite and of the right shape."""
        if (known := self._known.get((index, name))) is not None and np.array_equal(known[0], got):
            self.hits, self.rows = self.hits + known[1], self.rows + known[2]
            return True
        want, whole = self.expected[index][name], got
        if got.shape != want.shape or not (numbers(got) and numbers(want)):
            self.cosine = WORST
            return False
        keep = self.loaded.valid[self.source(index)] if self.loaded.valid else None
        got, want = (as_rows(x if keep is None else x[keep]) for x in (got, want))
        self.cosine = min(self.cosine, least_cosine(got, want))
        self.error = max(self.error, relative_error(got, want))
        hits = int((got.argmax(1) == want.argmax(1)).sum())
        self.hits, self.rows = self.hits + hits, self.rows + len(got)
        self._known[index, name] = whole.copy(), hits, len(got)
        return True

    def source(self, index: int) -> int:
        """The batch that an input is, or from which it was made where it is an unseen one."""
        return [*range(len(self.loaded.batches)), *(number for number, _ in self.loaded.unseen)][index]

    def scores(self) -> dict[str, float]:
        agreement = self.hits / self.rows if self.rows else 0.0
        return {"cosine": self.cosine, "max_relative_error": self.error, "argmax_agreement": agreement}


def as_rows(x: Array) -> Array:
    """An output as vectors, float64; one value a row (a probability) is no direction, so they are one vector together."""
    wide = x.ndim > 1 and x.shape[-1] > 1
    return x.reshape(-1, x.shape[-1] if wide else x.size).astype("float64")


def numbers(x: Array) -> bool:
    """Whether all values are finite numbers; of any type, bfloat16 too, which NumPy takes for bytes."""
    try:
        return bool(np.isfinite(x.astype("float64")).all())
    except (TypeError, ValueError):
        return False


def relative_error(got: Array, want: Array) -> float:
    """The largest error as a share of the largest right value."""
    return float(np.abs(got - want).max() / max(np.abs(want).max(), TINY))


def least_cosine(got: Array, want: Array) -> float:
    """Of any row; two rows of zeros are alike."""
    largest = [np.maximum(np.abs(x).max(axis=1, keepdims=True), TINY) for x in (got, want)]
    got, want = got / largest[0], want / largest[1]  # squares of float64 could overflow
    norms = np.linalg.norm(got, axis=1) * np.linalg.norm(want, axis=1)
    found = (got * want).sum(axis=1) / np.maximum(norms, TINY)
    return float(np.where((got == want).all(axis=1), 1.0, found).min())


@dataclass
class Samples:
    """Seconds of each timed run."""

    wall: list[float] = field(default_factory=list)
    device: list[float] = field(default_factory=list)
    rows: int = 0


class Timer:
    """Times runs of a session: wall time always, device time between two events where there is a device."""

    def __init__(self, session: Session, loaded: BenchModel, check: Check, device: str) -> None:
        self._session, self._loaded, self._check = session, loaded, check
        self._events: Any = None
        if device == "cuda":
            import torch

            self._events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]

    def measure(self, count: int, seconds: float, most: float, before: Callable[[], None]) -> Samples:
        """At least `count` runs, for at least `seconds`, and every input at least once; after `most` seconds no more than LEAST_RUNS.
        Seconds are those that pass, flushing and checking too: a model of microseconds would be flushed for minutes."""
        found, batches, began, spent = Samples(), self._loaded.batches, time.perf_counter(), 0.0
        while len(found.wall) < max(count, len(batches)) or spent < seconds:
            if len(found.wall) >= LEAST_RUNS and spent >= most:
                break
            index = len(found.wall) % len(batches)
            before()
            self._session.poison()
            wall, device, outputs = self._run(batches[index])
            if self._events is not None and isinstance(self._session, Staging):
                before()
                self._session.poison()
                device, outputs = self._replayed(batches[index])
            found.wall.append(wall)
            found.device += [] if device is None else [device]
            found.rows += self._loaded.rows[index]
            self._check.take(index, outputs)
            spent = time.perf_counter() - began
        return found

    def unseen(self) -> tuple[list[float], list[float]]:
        """Seconds of runs on inputs that the session has not seen, and of as many on inputs that it has: by the clock that ranks.

        Each input is run again right before it is timed, so that what a session keeps of it is at hand, however little it keeps.
        """
        new, again = list[float](), list[float]()
        for place, (number, batch) in enumerate(self._loaded.unseen, len(self._loaded.batches)):
            for index, inputs, into in ((number, self._loaded.batches[number], again), (place, batch, new)):
                if index == number:
                    self._ranked(inputs)
                self._session.poison()
                seconds, outputs = self._ranked(inputs)
                into.append(seconds)
                self._check.take(index, outputs)
        return new, again

    def _ranked(self, batch: Mapping[str, Array]) -> tuple[float, dict[str, Array]]:
        """Device time of the work alone where the session comes in parts, else wall time."""
        if self._events is not None and isinstance(self._session, Staging):
            return self._replayed(batch)
        wall, _, outputs = self._run(batch)
        return wall, outputs

    def _run(self, batch: Mapping[str, Array]) -> tuple[float, float | None, dict[str, Array]]:
        if self._events is None:
            began = time.perf_counter()
            outputs = self._session.run(batch)
            return time.perf_counter() - began, None, outputs
        import torch

        start, end = self._events
        torch.cuda.synchronize()
        began = time.perf_counter()
        start.record()
        outputs = self._session.run(batch)
        end.record()
        torch.cuda.synchronize()
        return time.perf_counter() - began, start.elapsed_time(end) / 1000, outputs

    def _replayed(self, batch: Mapping[str, Array]) -> tuple[float, dict[str, Array]]:
        """Device time of the work alone, its inputs on the device already."""
        import torch

        session, (start, end) = self._session, self._events
        assert isinstance(session, Staging)
        staged = session.stage(batch)
        torch.cuda.synchronize()
        torch.cuda._sleep(roofline.SPIN_CYCLES)  # the work is enqueued before the first event is reached
        start.record()
        session.replay(staged)
        end.record()
        torch.cuda.synchronize()
        return start.elapsed_time(end) / 1000, session.fetch(staged)


def flusher(device: str) -> Callable[[], None]:
    """What drives the model out of the last-level cache: a pass over a larger buffer, read and written. On a GPU another one is
    read after it, so that no written lines are left, which the run would have to wait for."""
    if device == "cuda":
        import torch

        size = FLUSH * torch.cuda.get_device_properties(0).L2_cache_size
        buffer, clean = (torch.zeros(size // 4, device="cuda") for _ in range(2))

        def flush_device() -> None:
            buffer.add_(1)
            clean.sum()
            torch.cuda.synchronize()

        return flush_device
    from buzzer.engine.device import cache_bytes

    words = np.zeros(FLUSH * cache_bytes() // 8, dtype=np.int64)

    def flush() -> None:
        np.add(words, 1, out=words)

    return flush


class Bench:
    """The jobs of `buzzer bench`; parameters are made in suite/bench/plan.py."""

    def fit(self, job: RunContext) -> Steps:
        """The right answers of every input, and what this machine can do at most."""
        yield "load"
        import torch

        torch.set_num_threads(job.threads)
        setting = Setting.of(job)
        answers = answers_cache.read_answers(setting.kept)
        if answers is None:
            loaded = setting.load()
            yield "predict"
            answers = answered(loaded, job.device)
            answers_cache.write_answers(answers, setting.kept)
            del loaded
        yield "roof"
        roof = roofline.measure(job.threads, job.device)
        (job.work / "roof.json").write_text(json.dumps(asdict(roof)))
        facts = {"notes": answers.notes, "source": answers.source, "fingerprint": answers.fingerprint}
        return Result({}, 0, facts)

    def bench(self, job: RunContext) -> Steps:
        if (
            job.backend == "torch_compile"
        ):  # it would take another run's kernels, and their time would be nobody's
            os.environ |= {name: str(job.out / "compiled" / name) for name in COMPILED}
        yield "load"
        setting = Setting.of(job)
        loaded, answers = setting.load(), answers_cache.read_answers(setting.kept)
        if answers is None:
            raise DataError(f"{setting.kept}: no right answers", "run the bench again")
        answers_cache.check_inputs(answers, loaded, setting.kept)
        roof = Roof(**json.loads((job.work / "roof.json").read_text()))
        model = on_device(loaded.model, job.device)
        if job.precision in QUANTISED:
            yield "quantise"
            model = quantised(replace(loaded, model=model), job, setting.kept)
        yield "compile"
        check = Check(loaded, answers.expected)
        with prepared(model, loaded, job) as session:
            for index in first_of_each_shape(loaded):
                check.take(index, session.run(loaded.batches[index]))
            yield "warmup"
            count, seconds, most = (job.params[name] for name in ("count", "seconds", "at_most"))
            warm_up(session, loaded, most)
            timer = Timer(session, loaded, check, job.device)
            if job.params["scenario"]:
                yield "loadgen"
                from buzzer.suite.bench import loadgen

                told = loadgen.run(session, loaded, check, job.params, job.out)
                yield "unseen"
                new, again = timer.unseen()
                samples = {"unseen_run": new, "seen_run": again}
                more = facts(session.describe(), loaded, job, roof, answers.cost, check, told)
                notes = session.describe().notes + unproven(loaded)
                return Result(check.scores(), told["rows"], more, (), samples, notes)
            yield "warm"
            before = gpu_state(job.device)
            warm = timer.measure(count, seconds, most, lambda: None)
            yield "cold"
            cold = timer.measure(count, seconds, most, flusher(job.device))
            yield "unseen"
            new, again = timer.unseen()
            yield "score"
            described = session.describe()
            told = facts(described, loaded, job, roof, answers.cost, check, {"warm_rows": warm.rows})
        if before is not None:
            told["gpu_state"] = {"before": before, "after": gpu_state(job.device)}
        samples = {"warm_run": warm.wall, "cold_run": cold.wall, "unseen_run": new, "seen_run": again}
        if warm.device:
            samples |= {"warm_run_device": warm.device, "cold_run_device": cold.device}
        asked, had = max(count, len(loaded.batches)), min(len(warm.wall), len(cold.wall))
        notes = described.notes + unproven(loaded) + ended_early(job.backend, job.precision, had, asked, most)
        return Result(check.scores(), warm.rows + cold.rows, told, (), samples, notes)


def answered(loaded: BenchModel, device: str) -> Answers:
    """The right answers of every input: in FP32, on the GPU where there is one, which is held against the CPU by one row.

    Raises DataError for an answer that is not finite, RuntimeError where GPU and CPU differ.
    """
    first = {name: array[:1] for name, array in loaded.batches[0].items()}
    moved, on_cpu = is_module(loaded.model) and device == "cuda", {}
    if moved:
        on_cpu = dict(loaded.reference(first))
        on_device(loaded.model, device)
        exact_products()
        check_answers(on_cpu, loaded.reference(first))
    expected = [dict(loaded.reference(batch)) for batch in answers_cache.every_input(loaded)]
    if where := answers_cache.not_finite(expected):
        raise DataError(
            f"the model's own answer is not finite: {where}",
            "no precision can be held against it; choose other weights or another --seed",
        )
    if empty := [name for name, array in expected[0].items() if array.size == 0]:
        raise DataError(
            f"the model's output {empty[0]} has no values", "there is nothing to hold a run against"
        )
    cost = cost_of(loaded.model, loaded.batches[0])
    inputs = answers_cache.fingerprint(loaded)
    return Answers(expected, inputs, loaded.source, tuple(loaded.notes), cost)


def check_answers(cpu: Mapping[str, Array], gpu: Mapping[str, Array]) -> None:
    """Raises RuntimeError where the GPU computes another FP32 answer than the CPU."""
    for name, want in cpu.items():
        error = float(np.abs(gpu[name] - want).max() / max(np.abs(want).max(), TINY))
        if not error < SAME:
            raise RuntimeError(
                f"output {name}: FP32 on the GPU is off the CPU's by {error:.3g} of the largest value"
            )


def exact_products() -> None:
    """FP32 products without TF32."""
    import torch

    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False


def is_module(model: Any) -> bool:
    """Whether it is a torch module; does not import torch for models that are none."""
    return "torch" in sys.modules and isinstance(model, sys.modules["torch"].nn.Module)


def on_device(model: Any, device: str) -> Any:
    """A torch module moved to the GPU, where it is calibrated and packed faster; all else as it is."""
    return model.to(device) if device == "cuda" and is_module(model) else model


def gpu_state(device: str) -> dict[str, Any] | None:
    """Clock of the multiprocessors in MHz, power in watts and temperature in degrees Celsius, by NVML; None without it."""
    if device != "cuda":
        return None
    import torch

    try:
        return {
            "sm_mhz": torch.cuda.clock_rate(),
            "power_w": torch.cuda.power_draw() / 1000,
            "temperature_c": torch.cuda.temperature(),
        }
    except Exception:  # noqa: BLE001  no bindings, or a counter that this GPU has not: no reason to lose a run
        return None


def ended_early(backend: str, precision: str, runs: int, count: int, most: float) -> tuple[str, ...]:
    """What a reader must know of a session that was too slow for its runs."""
    if runs >= count:
        return ()
    return (f"{backend} {precision} was ended after {most:g} s, with {runs} of {count} runs (--at-most)",)


def unproven(loaded: BenchModel) -> tuple[str, ...]:
    """What a reader must know where no unseen input could be made."""
    if loaded.unseen:
        return ()
    return ("no input could be made that the session had not seen: whether it keeps answers is not known",)


def quantised(loaded: BenchModel, job: RunContext, kept: Path) -> Any:
    """The module with static scales of the target's calibration inputs. A model file keeps its own types.

    On the CPU, where that takes its time, it is read from the cache; a GPU is faster than the reading.
    """
    if not is_module(loaded.model):
        return loaded.model
    from buzzer.engine import quant

    folder = kept / f"quantised-{job.precision}-{answers_cache.digest(stamp(sources(quant)))}"
    if answers_cache.is_kept(folder):
        return quant.load(folder, loaded.model)
    made = quant.quantise(loaded.model, loaded.calibration, precision=job.precision)
    if job.device == "cpu":
        answers_cache.keep(folder, lambda aside: quant.save(made, aside))
    return made


def sources(package: Any) -> list[Path]:
    return [*Path(package.__file__).parent.glob("*.py")]


def prepared(model: Any, loaded: BenchModel, job: RunContext) -> Session:
    """A session for the target's sizes: fixed ones where all inputs have the same."""
    fixed: dict[str, dict[int, str]] = {name: {} for name in loaded.batches[0]}
    return infer.prepare(
        model,
        backend=job.backend,
        example=loaded.batches[0],
        outputs=loaded.outputs,
        dynamic=loaded.dynamic or fixed,
        precision=job.precision,
        device=job.device,
        threads=job.threads,
    )


def first_of_each_shape(loaded: BenchModel) -> list[int]:
    """An input of each size: what a backend makes for a size belongs to compile, not to warm."""
    sizes = {tuple(a.shape for a in batch.values()): i for i, batch in reversed([*enumerate(loaded.batches)])}
    return sorted(sizes.values())


def warm_up(session: Session, loaded: BenchModel, most: float) -> None:
    """Some runs, and for some time; a slow session is warm after one."""
    began, spent, runs = time.perf_counter(), 0.0, 0
    while (runs < WARMUP_RUNS or spent < WARMUP_S) and not (runs and spent >= most / 10):
        session.run(loaded.batches[runs % len(loaded.batches)])
        runs, spent = runs + 1, time.perf_counter() - began


def facts(
    told: Description,
    loaded: BenchModel,
    job: RunContext,
    roof: Roof,
    cost: Cost | None,
    check: Check,
    more: Mapping[str, Any],
) -> dict[str, Any]:
    """The record's `details` and, under `bench`, the fields of its own."""
    flops, moved = (None, None) if cost is None else (cost.flops, cost.bytes_moved(job.precision))
    told = replace(told, flops=flops, bytes_moved=moved)
    floor = None if flops is None or moved is None else roof.floor_s(moved, flops, job.precision)
    bench = {
        "batch": job.params["batch"],
        "seq": job.params["seq"],
        "lengths": job.params["lengths"],
        "packing": job.params["packing"],
        "scenario": job.params["scenario"] or "",
        "inputs": len(loaded.batches),
        "flops": told.flops,
        "bytes_moved": told.bytes_moved,
        "kernels": told.kernels,
        "floor_s": floor,
        "bandwidth": roof.bandwidth,
        "peak": roof.peak.get(roofline.ROOF_ALIAS.get(job.precision, job.precision)),
        "threads": told.threads,
        "affinity": list(told.affinity),
        "denormals": told.denormals,
        "checked_runs": check.runs,
        "bad_runs": check.bad,
        "rows": more.get("warm_rows", 0),
        "loadgen": more.get("loadgen"),
    }
    return {"session": asdict(told), "bench": bench, **loaded.facts}


BENCH = Bench()
