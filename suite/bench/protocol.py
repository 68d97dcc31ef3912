"""The bench protocol, as it runs in the worker: one model on one backend, with rotating inputs. The outputs of every run are checked.

`fit` runs once for all backends: it computes the reference outputs, unless they are in the cache, and measures the machine's memory
bandwidth and peak FLOPs, unless the command has done so for an earlier size. `bench` times one backend in one precision.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from buzzer import manifest
from buzzer.engine import infer
from buzzer.engine.infer import Session, roofline
from buzzer.engine.infer.roofline import Roof
from buzzer.engine.infer.session import Description
from buzzer.errors import DataError
from buzzer.models.api.bench import BenchModel, stamp
from buzzer.models.api.context import BenchResult, Result, RunContext, Steps
from buzzer.suite.bench import answers, answers_cache, loadgen
from buzzer.suite.bench.answers_cache import Answers
from buzzer.suite.bench.checks import Check
from buzzer.suite.bench.settings import ROOF, Settings
from buzzer.suite.bench.timing import Timer, first_of_each_shape, flusher, gpu_state, no_flush, warm_up

COMPILED = ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")  # folders of torch.compile's caches
QUANTISED = ("int8", "fp8")  # precisions in which the backend gets a quantised module


class Bench:
    """The task of `buzzer bench`; `suite/bench/plan.py` makes its parameters."""

    def fit(self, context: RunContext) -> Steps:
        """Compute the reference outputs of every input, and measure the roofline of this machine.

        Writes `roof.json` to `context.work`, unless it is there. Details: `notes`, `source` and `fingerprint` of the inputs, and `model_hash`.
        """
        yield "load"
        import torch

        torch.set_num_threads(context.threads)
        settings = Settings.of(context)
        expected = answers_cache.read_answers(settings.cached)
        if expected is None:
            model = settings.load()
            yield "predict"
            expected = answers.compute(model, context.device)
            answers_cache.write_answers(expected, settings.cached)
            del model
        if not (context.work / ROOF).exists():
            yield "roof"
            roof = roofline.measure(context.threads, context.device)
            (context.work / ROOF).write_text(json.dumps(asdict(roof)))
        origin = {"fingerprint": expected.fingerprint, "model_hash": expected.model_hash}
        facts = {"notes": expected.notes, "source": expected.source, **origin}
        return Result({}, 0, facts)

    def bench(self, context: RunContext) -> Steps:
        """Time one backend in one precision. Details: `session`, `gpu_state` on a GPU, and the model's own facts."""
        if infer.info(context.backend).compiles:  # a warm cache would hide compile time
            os.environ |= {name: str(context.out / "compiled" / name) for name in COMPILED}
        yield "load"
        settings = Settings.of(context)
        model, expected = settings.load(), answers_cache.read_answers(settings.cached)
        if expected is None:
            raise DataError(f"{settings.cached}: no reference outputs", "run the bench again")
        answers_cache.check_origin(expected, model, settings.cached)
        roof = Roof(**json.loads((context.work / ROOF).read_text()))
        model = replace(model, model=answers.on_device(model.model, context.device))
        module = model.model
        if context.precision in QUANTISED:
            yield "quantise"
            module = quantised(model, context, settings.cached)
        yield "compile"
        check = Check(model, expected.expected)
        with prepare(module, model, context) as session:
            for index in first_of_each_shape(model):
                check.add(index, session.run(model.batches[index]))
            yield "warmup"
            warm_up(session, model, settings.sampling.at_most)
            trial = Trial(context, settings, model, expected, roof, session, check)
            return (yield from trial.timed() if settings.scenario is None else trial.with_loadgen())


@dataclass(frozen=True)
class Trial:
    """A session that is ready to be timed, with everything that its figures are computed from."""

    context: RunContext
    settings: Settings
    model: BenchModel
    answers: Answers
    roof: Roof
    session: Session
    check: Check

    def timed(self) -> Steps:
        """Time warm runs, then cold runs, then runs on unseen inputs."""
        device, sampling = self.context.device, self.settings.sampling
        timer = Timer(self.session, self.model, self.check, device)
        yield "warm"
        before = gpu_state(device)
        warm = timer.measure(sampling, no_flush)
        yield "cold"
        cold = timer.measure(sampling, flusher(device))
        yield "unseen"
        probes = timer.unseen()
        yield "score"
        scores = self.scores()
        session = self.describe()
        states = {} if before is None else {"gpu_state": {"before": before, "after": gpu_state(device)}}
        samples = {"warm_run": warm.wall, "cold_run": cold.wall}
        samples |= {"unseen_run": probes.unseen, "seen_run": probes.seen}
        if warm.device:
            samples |= {"warm_run_device": warm.device, "cold_run_device": cold.device}
        runs, wanted = min(len(warm.wall), len(cold.wall)), max(sampling.count, len(self.model.batches))
        early = ended_early(self.context, runs, wanted, sampling.at_most)
        return Result(
            scores,
            warm.rows + cold.rows,
            self.details(session) | states,
            samples=samples,
            notes=session.notes + without_probes(self.model) + early,
            bench=self.result(session, warm_rows=warm.rows),
        )

    def with_loadgen(self) -> Steps:
        """Run a scenario of LoadGen, which measures the times, then time runs on unseen inputs."""
        assert self.settings.scenario is not None
        timer = Timer(self.session, self.model, self.check, self.context.device)
        yield "loadgen"
        rows, verdict = loadgen.run(
            self.session, self.model, self.check, self.settings.scenario, self.context.out
        )
        yield "unseen"
        probes = timer.unseen()
        yield "score"
        scores = self.scores()
        session = self.describe()
        return Result(
            scores,
            rows,
            self.details(session),
            samples={"unseen_run": probes.unseen, "seen_run": probes.seen},
            notes=session.notes + without_probes(self.model) + verdict.notes,
            bench=self.result(session, loadgen_verdict=verdict.summarised()),
        )

    def scores(self) -> dict[str, float]:
        """Agreement with the reference outputs, and the scores of this session on labelled inputs, if the model has them."""
        labelled = self.model.evaluate(self.session.run) if self.model.evaluate else {}
        return self.check.scores() | dict(labelled)

    def describe(self) -> Description:
        """The description of the session, with the cost of a run on the first input."""
        cost = self.answers.cost
        if cost is None:
            return replace(self.session.describe(), flops=None, bytes_moved=None)
        moved = cost.bytes_moved(self.context.precision)
        return replace(self.session.describe(), flops=cost.flops, bytes_moved=moved)

    def details(self, session: Description) -> dict[str, Any]:
        """The field `details` of the record."""
        return {"session": asdict(session), **self.model.facts}

    def result(
        self, session: Description, warm_rows: int = 0, loadgen_verdict: Mapping[str, Any] | None = None
    ) -> BenchResult:
        """The field `bench` of the record."""
        precision, spec = self.context.precision, self.settings.spec
        flops, moved = session.flops, session.bytes_moved
        floor_s = None if flops is None or moved is None else self.roof.floor_s(moved, flops, precision)
        return BenchResult(
            batch=spec.batch,
            seq=spec.seq,
            lengths=spec.lengths,
            packing=spec.packing,
            scenario="" if self.settings.scenario is None else self.settings.scenario.name,
            inputs=len(self.model.batches),
            rows=warm_rows,
            flops=flops,
            bytes_moved=moved,
            kernels=session.kernels,
            floor_s=floor_s,
            bandwidth=self.roof.bandwidth,
            peak=self.roof.peak.get(roofline.ROOF_ALIAS.get(precision, precision)),
            threads=session.threads,
            affinity=list(session.affinity),
            denormals=session.denormals,
            checked_runs=self.check.runs,
            bad_runs=self.check.bad,
            loadgen=loadgen_verdict,
        )


def ended_early(context: RunContext, runs: int, wanted: int, at_most: float) -> tuple[str, ...]:
    """A note if the session was too slow for its number of runs."""
    if runs >= wanted:
        return ()
    variant = f"{context.backend} {context.precision}"
    return (f"{variant} was stopped after {at_most:g} s, with {runs} of {wanted} runs (--at-most)",)


def without_probes(model: BenchModel) -> tuple[str, ...]:
    """A note if no unseen input could be made for the model."""
    if model.unseen:
        return ()
    return ("no unseen input could be made, so it is not known whether the session caches answers",)


def quantised(model: BenchModel, context: RunContext, cached: Path) -> Any:
    """The module with static scales from the calibration inputs. A model that is not a torch module is returned unchanged.

    On the CPU, where quantising is slow, the quantised module is cached. A GPU quantises faster than the cache can be read.
    """
    if not answers.is_module(model.model):
        return model.model
    from buzzer.engine import quant

    folder = cached / f"quantised-{context.precision}-{answers_cache.digest(stamp(sources(quant)))}"
    if manifest.is_whole(folder):
        return quant.load(folder, model.model)
    module = quant.quantise(model.model, model.calibration, precision=context.precision)
    if context.device == "cpu":
        manifest.save(folder, lambda aside: quant.save(module, aside))
    return module


def sources(package: Any) -> list[Path]:
    """The source files of a package."""
    return [*Path(package.__file__).parent.glob("*.py")]


def prepare(module: Any, model: BenchModel, context: RunContext) -> Session:
    """A session for the model's inputs. Its shapes are fixed if all inputs have the same shape."""
    fixed: dict[str, dict[int, str]] = {name: {} for name in model.batches[0]}
    return infer.prepare(
        module,
        backend=context.backend,
        example=model.batches[0],
        outputs=model.outputs,
        dynamic=model.dynamic or fixed,
        precision=context.precision,
        device=context.device,
        threads=context.threads,
    )


BENCH = Bench()
