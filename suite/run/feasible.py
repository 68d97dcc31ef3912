"""Whether a planned run can start here: checks engine, backend, device and precision before anything is trained. Imports no model."""

from collections.abc import Callable

from buzzer.engine import frames, infer
from buzzer.engine.device import require_cuda
from buzzer.errors import BuzzerError, UnsupportedError
from buzzer.suite.registry import NO_ENGINE
from buzzer.suite.run.plan import Run

QUANTISED = ("int8", "fp8")  # precisions that need a model that its task has quantised


def problem(run: Run) -> BuzzerError | None:
    """Why a timed run cannot start on this machine; None if nothing speaks against it."""
    return first_problem(run, check_engine, check_backend, check_device, check_precision)


def device_problem(run: Run) -> BuzzerError | None:
    """Why a backend cannot run on the run's device; None if nothing speaks against it."""
    return first_problem(run, check_backend, check_device)


def first_problem(run: Run, *checks: Callable[[Run], None]) -> BuzzerError | None:
    """The error of the first check that the run does not pass; None if it passes all."""
    try:
        for check in checks:
            check(run)
    except BuzzerError as error:
        return error
    return None


def check_backend(run: Run) -> None:
    """Raises UnsupportedError if a backend lacks a package, or does not run on the run's device."""
    for part in infer.parts(run.backend):
        infer.check(part, run.device)


def check_engine(run: Run) -> None:
    """Raises UnsupportedError if a package or a device that the engine needs is missing. The GPUs of a cluster may be elsewhere."""
    if run.engine == NO_ENGINE:
        return
    if run.cluster and frames.on_cluster(run.engine):
        frames.require(frames.info(run.engine))
    else:
        frames.check(run.engine)


def check_device(run: Run) -> None:
    """Raises UnsupportedError if the run needs a CUDA device and there is none."""
    if run.device == "cuda" and not run.cluster:
        require_cuda()


def check_precision(run: Run) -> None:
    """Raises UnsupportedError for a precision that neither the task nor the backend of its networks has."""
    if run.precision in (*run.task.precisions, "fp32"):
        return
    networks, trees = infer.split_backend(run.backend)
    backend = trees if set(run.task.kinds) == {infer.TREES} else networks
    offered = infer.load(backend).PRECISIONS
    if run.precision not in offered:
        raise UnsupportedError(
            f"backend {backend} has no precision {run.precision}", f"it has: {', '.join(offered)}"
        )
    if run.precision in QUANTISED:
        raise UnsupportedError(
            f"{run.task.name} has no model in {run.precision}",
            f"it has: {', '.join(run.task.precisions)}; bert-intent-precision has quantised models",
        )
