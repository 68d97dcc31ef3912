"""The settings of one bench run, read from the parameters that `suite/bench/plan.py` makes."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from buzzer.models.api.bench import BenchModel, BenchSpec, Checker, ModelProvider, altered
from buzzer.models.api.context import RunContext
from buzzer.suite.bench import answers_cache
from buzzer.suite.bench.loadgen import Scenario
from buzzer.suite.bench.timing import Sampling
from buzzer.suite.run.worker import load_entry

ROOF = "roof.json"  # the measured roofline, in the folder of the reference outputs


@dataclass(frozen=True)
class Settings:
    """What one bench run times, how, and where the reference outputs are cached."""

    provider: ModelProvider
    spec: BenchSpec
    sampling: Sampling
    scenario: Scenario | None  # an MLPerf scenario; None = runs are timed one after another
    cached: Path  # cache folder of this model at these sizes

    @classmethod
    def of(cls, context: RunContext) -> "Settings":
        """The settings of a run."""
        params = context.params
        provider: ModelProvider = load_entry(params["target"], context.task)  # type: ignore[assignment]
        spec = replace(spec_of(params, context.seed), work=context.work.parent, threads=context.threads)
        return cls(
            provider,
            spec,
            Sampling(params["count"], params["seconds"], params["at_most"]),
            Scenario.of(params) if params["scenario"] else None,
            answers_cache.folder(context, provider, spec),
        )

    def load(self) -> BenchModel:
        """The model and its inputs, including inputs that no timed run has seen."""
        model = self.provider.load(self.spec)
        return replace(model, unseen=altered(model.batches))


def spec_of(params: Mapping[str, Any], seed: int) -> BenchSpec:
    """The sizes and the model in the parameters of a bench run, without a folder for files."""
    return BenchSpec(
        batch=params["batch"],
        seq=params["seq"],
        inputs=params["inputs"],
        lengths=params["lengths"],
        packing=params["packing"],
        seed=seed,
        params=params["model"],
        file=Path(params["inputs_file"]) if "inputs_file" in params else None,
    )


def check(model: str, params: Mapping[str, Any], seed: int) -> None:
    """Raises what the model's provider can see to be wrong without loading the model, before a process is started."""
    if params["scenario"]:
        Scenario.of(params).check()
    provider = load_entry(params["target"], model)
    if isinstance(provider, Checker):
        provider.check(spec_of(params, seed))
