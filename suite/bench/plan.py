"""Plans the runs of `buzzer bench` and their order."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from buzzer import extras
from buzzer.engine import infer
from buzzer.engine.infer.onnx import graphs
from buzzer.errors import BuzzerError, UnsupportedError, UsageError, unknown_name
from buzzer.models.api.bench import QUESTIONS
from buzzer.suite import budget as budgets
from buzzer.suite import registry
from buzzer.suite.bench import identity, loadgen
from buzzer.suite.budget import Budget
from buzzer.suite.registry import NO_ENGINE, ModelConfig, TaskConfig, Variant
from buzzer.suite.requests import BenchRequest, given, names, option_of
from buzzer.suite.run import feasible
from buzzer.suite.run.plan import Planned, Run
from buzzer.suite.run.resolve import check_device, check_numbers

ENTRY = "buzzer.suite.bench.protocol:BENCH"
REFERENCE = "torch_eager"
TREE_PRECISION = "fp32"  # of boosted trees
ANY = "any"  # precision in the record of a backend that is not installed, if no precision was requested
INPUTS, LEAST_INPUTS = 16, 4  # different batches: most, and least of large ones
LARGEST = 1_000_000_000  # of any number of a request
# Least and greatest of the numbers of a request.
RANGES = {
    "seq": (1, LARGEST),
    "count": (1, LARGEST),
    "inputs": (2, 4096),
    "seconds": (0, LARGEST),
    "at_most": (0, LARGEST),
    "min_duration": (0, LARGEST),
    "qps": (0, LARGEST),
    "bound": (0, LARGEST),
}
OF_LOADGEN = ("mlperf", "qps", "bound", "min_duration", "loadgen_seeds")  # fields that need a scenario
SCENARIOS = ("single-stream", "offline", "server")
LENGTHS = ("fixed", "real")
PACKINGS = ("padded", "sorted", "packed")
LARGE = 65536  # most tokens (or rows, if rows have no tokens) of all inputs together, unless LEAST_INPUTS need more


@dataclass(frozen=True)
class BenchSelection:
    """One model at one batch size and packing, with every name checked."""

    request: BenchRequest
    model: ModelConfig
    backends: Sequence[str]
    precisions: Sequence[str]  # empty = all that a backend has
    budget: Budget
    batch: int  # rows per run
    packing: str
    seq: int  # tokens per row; 0 = the rows have no such axis

    @property
    def rounds(self) -> int:
        """Rounds over all variants. One round under LoadGen, which repeats runs itself."""
        return 1 if self.request.scenario else self.request.rounds

    def params(self) -> dict[str, Any]:
        """Parameters of the bench task (suite/bench/protocol.py), as they are in records."""
        request = self.request
        loadgen_params: dict[str, Any] = {}
        if request.scenario:
            loadgen_params |= {"loadgen_seeds": list(request.loadgen_seeds)}
        if request.mlperf:
            loadgen_params |= {"mlperf": request.mlperf}
        # In records without `rate`, 0 queries per second are half of what is possible.
        if request.scenario == loadgen.SERVER and not request.qps:
            loadgen_params |= {"rate": "highest"}
        return {
            "batch": self.batch,
            "lengths": request.lengths,
            "count": request.count,
            "seconds": float(request.seconds),
            "at_most": float(request.at_most),
            "scenario": request.scenario,
            "min_duration": float(request.min_duration),
            "qps": float(request.qps),
            "bound": float(request.bound),
            "packing": self.packing,
            "seq": self.seq,
            **loadgen_params,
            "inputs": request.inputs if isinstance(request.inputs, int) else inputs_of(self.batch, self.seq),
            **file_params(request),
        }


def selections(request: BenchRequest) -> list[BenchSelection]:
    """A selection for each batch size and packing. Raises UsageError for a wrong value, an unknown name, or a budget beyond this machine."""
    check(request)
    extras.require("torch", "`buzzer bench`")
    model, budget = registry.model(str(request.model)), budgets.resolve(request.budget)
    precisions = [] if names(request.precisions) == ["all"] else names(request.precisions)
    registry.check_precisions(precisions)
    backends = backends_of(model, names(request.backends))
    given = file_params(request)
    if given and not model.takes_inputs:
        raise UsageError(f"{model.name} makes its own inputs", "--inputs FILE is for files, folders and BERT")
    if given and request.lengths != "fixed":
        raise UsageError("--inputs FILE sets the lengths of rows", "leave out --lengths real")
    arrays = bool(given) and Path(given["inputs_file"]).suffix != QUESTIONS
    seq, batches = 0 if arrays else tokens_of(model, request.seq), batches_of(request.batches)
    packings = names(request.packings) or ["padded"]
    if not seq and not arrays and (request.lengths != "fixed" or packings != ["padded"]):
        raise UsageError(
            f"the rows of {model.name} have no tokens",
            "leave out --lengths and --packing, which are for encoders",
        )
    selected = [
        BenchSelection(request, model, backends, precisions, budget, batch, packing, seq)
        for batch in batches
        for packing in packings
    ]
    if problems := budgets.unmet(budget):
        raise UsageError(f"budget {budget.name}: {'; '.join(problems)}", "choose a smaller --budget")
    return selected


def check(request: BenchRequest) -> None:
    """Raises UsageError for a name or number of a request that is not allowed."""
    allowed = {
        "lengths": (request.lengths, LENGTHS),
        "scenario": (request.scenario, ("", *SCENARIOS)),
    }
    for name, (value, choices) in allowed.items():
        if value not in choices:
            raise unknown_name(name, value, choices)
    for packing in names(request.packings):
        if packing not in PACKINGS:
            raise unknown_name("packing", packing, PACKINGS)
    check_device(request.device)
    check_numbers(seed=request.seed, rounds=request.rounds)
    for name, (smallest, largest) in RANGES.items():
        number = getattr(request, name)
        if isinstance(number, int | float) and not smallest <= number <= largest:
            raise UsageError(f"{name} is {number:g}; it must be from {smallest} to {largest:,}")
    seeds = request.loadgen_seeds
    if len(seeds) != len(loadgen.SEEDS) or not all(0 <= seed < 1 << 64 for seed in seeds):
        raise UsageError(f"loadgen_seeds {list(seeds)}: not three whole numbers", "write them like 1,2,3")
    check_scenario(request)


def check_scenario(request: BenchRequest) -> None:
    """Raises UsageError for rows of real lengths with a scenario of LoadGen, and for LoadGen's options without one."""
    if request.scenario and request.lengths == "real":
        raise UsageError("LoadGen's samples are rows of one length here", "leave out --lengths real")
    if not request.scenario and (fields := given(request, OF_LOADGEN)):
        raise UsageError(
            f"{option_of(fields[0])} is for a scenario of LoadGen", "add --scenario single-stream"
        )


def file_params(request: BenchRequest) -> dict[str, str]:
    """Path and hash of the file with the inputs; empty if there is none. Raises UsageError for a file that does not exist."""
    if request.inputs is None or isinstance(request.inputs, int):
        return {}
    path = Path(request.inputs).resolve()
    if not path.is_file():
        raise UsageError(f"--inputs {request.inputs}: neither a number nor a file")
    return {"inputs_file": str(path), "inputs_hash": identity.of_path(path)}


def batches_of(sizes: int | Sequence[int]) -> list[int]:
    """The batch sizes as a list, each once. Raises UsageError for a size that is not above zero."""
    batches = [sizes] if isinstance(sizes, int) else list(dict.fromkeys(sizes))
    if not batches or not all(isinstance(batch, int) and batch > 0 for batch in batches):
        shown = ",".join(map(str, batches))
        raise UsageError(f"--batch {shown}: not whole numbers above zero", "write it like 1 or 1,100,10000")
    return batches


def inputs_of(batch: int, seq: int) -> int:
    """The default number of batches to rotate through: fewer if they are large, because the FP32 outputs of each cost time and memory."""
    return min(INPUTS, max(LEAST_INPUTS, LARGE // (batch * max(seq, 1))))


def task_of(selection: BenchSelection) -> TaskConfig:
    """The model as a task, as the runner needs it."""
    return TaskConfig(
        name=selection.model.name,
        summary=selection.model.summary,
        entry=ENTRY,
        dataset=NO_ENGINE,
        engines=[NO_ENGINE],
        backends=selection.model.backends,
        reference=Variant(engine=NO_ENGINE, backend=REFERENCE),
        metric="cosine",
        tolerance=0.0,  # not used: bench runs have their own gate, `registry.bench_gate`
        params={
            "target": selection.model.entry,
            "model": selection.model.params,
            **content(selection.model),
            **selection.params(),
        },
    )


def content(model: ModelConfig) -> dict[str, str]:
    """The parameter `model_hash` of a model given as a path; empty for a named model, whose hash is known when it has been loaded."""
    paths = [Path(value) for value in model.params.values() if Path(str(value)).is_absolute()]
    return {"model_hash": identity.of_path(paths[0])} if paths else {}


def reference_run(selection: BenchSelection) -> Run:
    """The run that computes the reference outputs and measures the roofline."""
    return run_of(selection, "fit", REFERENCE, "fp32")


def run_of(selection: BenchSelection, job: str, backend: str, precision: str, repeat: int = 0) -> Run:
    """A run of the selected model."""
    return Run(
        task=task_of(selection),
        job=job,
        engine=NO_ENGINE,
        backend=backend,
        precision=precision,
        device=selection.request.device,
        budget=selection.budget,
        scale=1.0,
        seed=selection.request.seed,
        repeat=repeat,
    )


def backends_of(model: ModelConfig, requested: Sequence[str]) -> list[str]:
    """The backends to run: the requested ones, or every backend of the model. Raises UsageError for an unknown one."""
    if list(requested) in ([], ["all"]):
        return list(model.backends)
    for name in requested:
        infer.info(name)
        if name not in model.backends:
            raise unknown_name(f"backend of {model.name}", name, model.backends)
    return list(requested)


def plan(selection: BenchSelection) -> list[Planned]:
    """The runs in order. Every second round is in reverse, so that drift affects all variants alike. A variant that cannot run occurs once."""
    variants = [
        (b, p, problem or feasible.device_problem(run_of(selection, "bench", b, p)))
        for b in selection.backends
        for p, problem in precisions_of(b, selection.precisions, selection.model)
    ]
    rounds = []
    for repeat in range(selection.rounds):
        order = variants if repeat % 2 == 0 else variants[::-1]
        rounds += [(repeat, *variant) for variant in order if repeat == 0 or variant[2] is None]
    return [Planned(run_of(selection, "bench", b, p, repeat), problem) for repeat, b, p, problem in rounds]


def file_of(model: ModelConfig) -> Path | None:
    """The ONNX file of a model; None if the model is not an ONNX file."""
    paths = [Path(str(value)) for value in model.params.values()]
    return next((path for path in paths if path.is_absolute() and path.suffix == ".onnx"), None)


def tokens_of(model: ModelConfig, seq: int) -> int:
    """Tokens per row: `seq`, or 0 for a model whose rows have no such axis."""
    file = file_of(model)
    return seq if model.tokens and (file is None or graphs.has_tokens(file)) else 0


def precisions_of(
    backend: str, requested: Sequence[str], model: ModelConfig | None = None
) -> list[tuple[str, BuzzerError | None]]:
    """Precisions to run on a backend, each with the reason if it cannot run; for a model those that it can have."""
    try:
        offered = infer.precisions(infer.load(backend), file_of(model) if model else None)
        if model and model.kind == infer.TREES:
            offered = tuple(name for name in offered if name == TREE_PRECISION)
    except UnsupportedError as error:
        return [(name, error) for name in (requested or [ANY])]
    if not requested:
        return [(name, None) for name in offered]
    missing = f"it has: {', '.join(offered)}"
    return [
        (name, None if name in offered else UnsupportedError(f"{backend} has no precision {name}", missing))
        for name in requested
    ]
