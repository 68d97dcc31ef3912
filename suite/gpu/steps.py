"""The steps of `make gpu-suite`, the most important ones first. Standard library only.

Two groups are for a machine that is available for minutes: `bert` needs torch and Triton, `frames` needs RAPIDS. `more` has the other
steps.
"""

from dataclasses import dataclass, replace

# Options of the data and fits that `make gpukit` packs. A step with the same options uses them.
SEED = {
    "recsys2021": ("--scale", "0.0002", "--set", "token_dim=8", "--set", "epochs=1"),
    "booking": ("--scale", "0.002", "--set", "epochs=1", "--set", "dim=16", "--set", "hidden=32"),
}
TEST_SCALE = (
    0.07  # scale of the large test: 1.0 million rows, which pandas predicts on one core in 40 seconds
)
ENGINES = "pandas,polars,cudf,polars-gpu"
GPU_TESTS = "(cudf or polars-gpu or cuda or nvforest) and not without_a_gpu"


@dataclass(frozen=True)
class Step:
    """One command: arguments of the Python that runs the suite.

    Placeholders: `{records}` is the folder for its records, `{work}` a folder shared by all steps, `{test_scale}` the size of the
    large test.
    """

    name: str
    command: tuple[str, ...]
    limit_s: float
    expected_s: float = 0.0  # on a GPU machine with 16 cores: an estimate until a GPU has run it
    cpu_s: float = 0.0  # CPU seconds of its parts without a GPU, measured in a rehearsal; 0 = not measured
    cores: int = 1  # number of the 16 cores that share the CPU seconds
    group: str = "more"
    gpu: bool = True  # whether it needs a GPU
    shares: str = ""  # folder of records that several steps share, so that a run is compared with the reference of an earlier step
    needs: tuple[str, ...] = ()  # earlier steps that write files which this step reads
    through: tuple[str, ...] = ()  # a program, with options, that runs the command


def of(group: str, *steps: Step) -> tuple[Step, ...]:
    """The steps as members of a group."""
    return tuple(replace(step, group=group) for step in steps)


def tests(
    name: str,
    limit_s: float,
    *folders: str,
    chosen: str = GPU_TESTS,
    marked: str = "not gpu_plan and not slow",
    processes: int = 6,
) -> Step:
    """A step that runs the tests in some folders that need a GPU, selected by their names and markers."""
    options = ("-q", "--maxfail=20", "-n", str(processes), "--hypothesis-profile", "gpu")
    selection = ("-p", "buzzer.suite.gpu.failures", "-k", chosen, "-m", marked)
    return Step(name, ("-m", "pytest", *options, *selection, *folders), limit_s, cores=processes)


def run(name: str, limit_s: float, task: str, *options: str, budget: str = "unlimited") -> Step:
    """A step that runs a task."""
    common = ("--on-unmet-budget", "warn", "--out", "{records}")
    return Step(name, ("-m", "buzzer", "run", task, "--budget", budget, *common, *options), limit_s)


def bench(name: str, limit_s: float, model: str, *options: str) -> Step:
    """A step that times a model on the GPU."""
    command = ("-m", "buzzer", "bench", model, "--device", "cuda", "--out", "{records}")
    return Step(name, (*command, *options), limit_s)


def kernels(name: str, limit_s: float, *arguments: str) -> Step:
    """A step that runs the tools of the fused kernels."""
    return Step(name, ("-m", "buzzer.engine.fused", *arguments), limit_s)


def timed(step: Step, expected_s: float, cpu_s: float = 0.0, cores: int | None = None) -> Step:
    """The step with its expected and measured seconds."""
    return replace(step, expected_s=expected_s, cpu_s=cpu_s, cores=cores or step.cores)


# ---- BERT: no RAPIDS, no Polars -----------------------------------------------------------------------------------------------

SHORT = ("--seq", "128", "--seconds", "0", "--rounds", "1")
SHAPE = (*SHORT, "--batch", "1", "--count", "460")
# These override batch and count in SHAPE: the last of two values.
OF_128, ONE_RUN = ("--batch", "128", "--count", "20"), ("--count", "4")
KERNEL_TESTS = ("tests/engine/kernels", "tests/engine/fused/test_fused.py")
# The hardware counters of one kernel, which show where its time goes.
NCU = (
    *("ncu", "--clock-control", "none", "--target-processes", "all", "--set", "full"),
    *("-k", "regex:gemm|project_|gelu_|residual_", "-c", "4"),
)
CUDA_TESTS = (
    "tests/engine/kernels/cuda",
    "tests/engine/fused/test_cuda.py",
)  # the same for the products in CUDA C++
NEW_PATHS = "wgmma or modes or quantised"  # code that no CPU can run: tiles that use wgmma, launch modes, eight-bit products


def bert_large(name: str, limit_s: float, backend: str, precisions: str, *options: str) -> Step:
    """A step that times BERT-Large on one sentence of 128 tokens, or on what the options say."""
    variants = ("--backend", backend, "--precision", precisions)
    return bench(name, limit_s, "bert-large", *variants, *SHAPE, *options)


def tune(name: str, precision: str, limit_s: float, seconds: int, *options: str) -> Step:
    """A step that tunes the kernels of a precision for this many seconds and stores the fastest variants."""
    return kernels(name, limit_s, "tune", "--precision", precision, "--seconds", str(seconds), *options)


BERT = of(
    "bert",
    timed(Step("env", ("-m", "buzzer", "env"), 30, gpu=False), 10, 3.1),
    timed(kernels("kernel probe", 40, "probe"), 10, 2.1),
    timed(tests("kernel tests", 90, *KERNEL_TESTS, chosen=NEW_PATHS, marked="gpu", processes=8), 45, 29.5),
    timed(tests("cuda kernel tests", 60, *CUDA_TESTS, chosen="", marked="gpu", processes=4), 30),
    timed(tune("kernel tune fp8", "fp8", 60, 40), 22, 2.2),
    timed(tune("kernel tune int8", "int8", 50, 35), 22, 2.1),
    timed(tune("kernel tune fp16", "fp16", 50, 35), 22, 2.1),
    *(timed(kernels(f"kernel times {mode}", 40, "kernels", "--mode", mode), 15) for mode in ("pdl", "cuda")),
    timed(kernels("kernel stages cuda", 30, "stages", "--mode", "cuda"), 10),
    timed(bert_large("bert-large fused", 140, "fused", "fp8,int8,fp16"), 90, 4.3),
    timed(bert_large("bert-large torch", 80, "torch_eager", "bf16"), 30, 4.0),
    timed(tune("tune fp8 of 128", "fp8", 60, 40, "--tokens", "16384"), 45, 2.2),
    timed(bert_large("bert-large of 128", 40, "fused", "fp8", *OF_128), 30, 2.0),
    timed(bert_large("torch of 128", 40, "torch_eager", "bf16", *OF_128), 30, 2.0),
    timed(kernels("products by libraries", 60, "products"), 40),
    timed(bert_large("bert-large in reverse", 140, "fused", "fp16,int8,fp8"), 75, 4.5),
    timed(replace(bert_large("gemm by ncu", 60, "fused", "fp8", *ONE_RUN), through=NCU), 40),
)

# ---- data frames: RAPIDS from .gpukit -----------------------------------------------------------------------------------------

SMALL = (*SEED["recsys2021"],)
NETWORKS = ("--backend", "torch_eager")
TREES = ("--backend", "nvforest")
ONE_CORE = "1c64g1h"
LARGE_DATA, HUGE_DATA = "{work}/recsys-large", "{work}/recsys-huge"
DATA = {"recsys2021 large data": LARGE_DATA, "recsys2021 huge data": HUGE_DATA}


def recsys(suffix: str, limit_s: float, engines: str, *options: str, budget: str = "unlimited") -> Step:
    """A step that runs recsys2021, with its records in the folder of all such steps."""
    step = run(f"recsys2021 {suffix}", limit_s, "recsys2021", "--engine", engines, *options, budget=budget)
    needs = tuple(name for name, folder in DATA.items() if folder in options)
    return replace(step, shares="recsys2021", needs=needs)


def recsys_data(name: str, limit_s: float, test_scale: str) -> Step:
    """A step that generates data: training parts as small as the seed's, and a test part of `test_scale`."""
    size = ("--scale", SEED["recsys2021"][1], "--test-scale", test_scale)
    command = ("-m", "buzzer", "data", "generate", "recsys2021", *size, "--out", DATA[name])
    return Step(name, command, limit_s, gpu=False)


ON_LARGE = ("--data", LARGE_DATA, *SEED["recsys2021"][2:], *NETWORKS)
ON_HUGE = ("--data", HUGE_DATA, *SEED["recsys2021"][2:], *NETWORKS)
TREES_ALONE = ("--backend", "xgboost,nvforest", "--batch", "100000", "--rounds", "1")
BOOKING = (*SEED["booking"], *NETWORKS)
PIPELINES = ("tests/models/recsys2021", "tests/models/booking")

LIBRARIES = (
    "numpy, pandas, polars, xgboost, nvforest, rmm, cudf, cudf_polars, dask_cuda, dask_cudf, cupy, torch"
)

FRAMES = of(
    "frames",
    timed(Step("libraries", ("-W", "ignore", "-c", f"import {LIBRARIES}"), 60, gpu=False), 8, 7.5),
    timed(recsys("small", 90, ENGINES, *SMALL, *NETWORKS), 45, 13.0),
    timed(recsys_data("recsys2021 large data", 30, "{test_scale}"), 9, 11.8, cores=8),
    # pandas first: the others are ranked by its scores
    timed(recsys("large on one core", 120, "pandas", *ON_LARGE, budget=ONE_CORE), 65, 30.0),
    timed(recsys("large", 120, "polars,cudf,polars-gpu", *ON_LARGE), 90, 62.0, cores=2),
    timed(tests("operators", 75, "tests/engine/frames"), 45, 31.0),
    timed(run("booking", 60, "booking", "--engine", "pandas,cudf,polars-gpu", *BOOKING), 35, 5.3),
    timed(bench("trees", 60, "gbdt", *TREES_ALONE), 40, 3.2),
    timed(recsys("nvforest", 60, "polars,cudf,polars-gpu", *SMALL, *TREES), 30, 8.0),
    timed(tests("pipelines", 90, *PIPELINES), 60, 70.2),
    timed(recsys("within 8 GB", 60, "cudf,polars-gpu", *SMALL, *NETWORKS, budget="16c64g1h-gpu8g"), 30, 3.9),
    timed(recsys("cluster of one", 60, "polars-gpu", *SMALL, *NETWORKS, "--gpus", "1"), 30, 2.3),
)

# ---- the rest, for a machine of your own ---------------------------------------------------------------------------------------

SHOPS = ("sigir-ecom-task2", "sigir-ecom-task1", "online-shoppers", "complete-journey")
SHOP_BACKENDS = {"sigir-ecom-task1": "torch_eager", "complete-journey": "torch_eager"}  # these have no trees
SCALES = {"complete-journey": ("--scale", "0.03")}  # the fit of all households takes minutes
ON_CLUSTER = ("--gpus", "1", "--device", "cuda")


def shop_options(task: str) -> tuple[str, ...]:
    """The engines and backends of a task of shop sessions."""
    return "--engine", ENGINES, "--backend", SHOP_BACKENDS.get(task, "torch_eager,nvforest")


MORE = of(
    "more",
    bench("bert-large all", 1200, "bert-large"),
    run("bert-intent", 300, "bert-intent", "--device", "cuda", "--backend", "all"),
    tests("models", 900, "tests/engine", "tests/models", "--ignore=tests/engine/frames"),
    *(run(name, 180, name, *SCALES.get(name, ()), *shop_options(name)) for name in SHOPS),
    recsys("fit on a cluster", 300, "polars-gpu", *SMALL, *NETWORKS, *ON_CLUSTER),
    recsys_data("recsys2021 huge data", 60, "0.14"),
    recsys("huge", 300, "polars,cudf,polars-gpu", *ON_HUGE),
    recsys("huge on one core", 1800, "pandas", *ON_HUGE, budget=ONE_CORE),
)

STEPS: tuple[Step, ...] = (*BERT, *FRAMES, *MORE)


def chosen(only: str) -> list[Step]:
    """The steps that a comma-separated list selects, in its order, each after the steps that it needs; all for an empty list.

    Each item of the list is the name of a group, or a part of the names of steps.
    """
    parts = [part.strip() for part in only.split(",") if part.strip()] or [""]
    groups = {step.group for step in STEPS}
    selected = [
        step
        for part in parts
        for step in STEPS
        if (part == step.group if part in groups else part in step.name)
    ]
    by_name = {step.name: step for step in STEPS}
    ordered = (part for step in selected for part in (*(by_name[name] for name in step.needs), step))
    return list(dict.fromkeys(ordered))
