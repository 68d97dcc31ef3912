"""Turns a request into a plan. Checks every name, number and limit of the request, once. Imports no model."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict

from buzzer import configs, extras
from buzzer.errors import UsageError, brief, unknown_name
from buzzer.models.api.context import ParamsChecker
from buzzer.suite import budget as budgets
from buzzer.suite import registry
from buzzer.suite.config_file import MOST_COUNT, MOST_SEED, check_scale, yaml_text
from buzzer.suite.registry import NO_ENGINE, TaskConfig
from buzzer.suite.requests import CompareRequest, RunRequest, names, numbers, option_of
from buzzer.suite.run.plan import Run, RunPlan, TaskSelection, interleaved, task_by_task
from buzzer.suite.run.worker import load_entry

DEVICES = ("cpu", "cuda")
POLICIES = ("fail", "warn")


class SuiteEntry(BaseModel):
    """A task of the default suite (configs/suite.yaml) with its settings. Settings of the request override them."""

    model_config = ConfigDict(extra="forbid")
    task: str
    engines: list[str] = []
    backends: list[str] = []
    precisions: list[str] = []
    budget: str = ""
    scale: float | None = None


def run_plan(request: RunRequest) -> RunPlan:
    """The plan of a run request. Raises UsageError for a value that is not allowed, an unknown name, or a budget beyond this machine."""
    check_numbers(seed=request.seed, rounds=request.rounds, workers=request.workers)
    check_device(request.device)
    check_scale("--scale", request.scale)
    check_scale("--train-scale", request.train_scale)
    check_data(request.data, scale=request.scale is not None, train_scale=request.train_scale is not None)
    tasks = names(request.tasks)
    if (not tasks or "all" in tasks) and request.data:
        raise UsageError(
            "--data needs a TASK", "name the task that the files belong to: buzzer run booking --data DIR"
        )
    if "all" in tasks:
        tasks = [*registry.tasks()]
    by_name = dict.fromkeys(registry.task(name).name for name in tasks)  # an alias may name a task again
    requests = [replace(request, tasks=[name]) for name in by_name] or default_suite(request)
    return planned(task_by_task([selection(each) for each in requests]), request)


def compare_plan(request: CompareRequest) -> RunPlan:
    """The plan of a comparison: a selection for each scale and device, in interleaved rounds. Raises UsageError like `run_plan`."""
    check_numbers(seed=request.seed, rounds=request.rounds)
    scales: list[float | None] = [*numbers(request.scales)]
    for scale in scales:
        check_scale("--scale", scale)
    check_scale("--train-scale", request.train_scale)
    check_data(request.data, scale=bool(scales), train_scale=request.train_scale is not None)
    devices = names(request.devices)
    for device in devices:
        check_device(device)
    base = RunRequest(
        request.task,
        engines=request.engines,
        backends=request.backends,
        precisions=request.precisions or "fp32",
        budget=request.budget or cpu_budgets(),
        data=request.data,
        train_scale=request.train_scale,
        seed=request.seed,
        rounds=request.rounds,
        params=request.params,
        on_unmet_budget=request.on_unmet_budget,
    )
    selections = [
        selection(replace(base, scale=scale, device=device))
        for scale in scales or [None]
        for device in devices or [""]
    ]
    return planned(interleaved(selections, request.seed), base)


def planned(plan: RunPlan, request: RunRequest) -> RunPlan:
    """The plan with the request's data folder and the warnings about this machine.

    Raises UsageError if the plan has no timed run, if the folder does not exist, or if a budget is beyond this machine.
    """
    offers = "; ".join(
        f"{s.task.name} has {', '.join([*s.task.engines, *s.task.backends])}" for s in plan.selections
    )
    if not plan.timed:
        raise UsageError("nothing to run: no task has the requested engines and backends", offers)
    if missing := offered_nowhere(plan.selections):
        raise UsageError(f"no task of this plan has {', '.join(missing)}", offers)
    folder = None if request.data is None else Path(request.data)
    if folder is not None and not folder.is_dir():
        raise UsageError(f"--data {folder}: no such folder")
    return replace(plan, data=folder, warnings=tuple(check_budgets(plan.timed, request.on_unmet_budget)))


def offered_nowhere(selections: Sequence[TaskSelection]) -> list[str]:
    """The engines and backends that were requested by name and that no task of the plan has, such as `backend openvino`.

    A task without feature frames runs whatever engine was requested.
    """
    framed = [s for s in selections if s.task.engines != [NO_ENGINE]]
    asked = [("engine", s.engines, s.task.engines) for s in framed]
    asked += [("backend", s.backends, s.task.backends) for s in selections]
    offered = {f"{kind} {name}" for kind, _, offers in asked for name in [*offers, "all"]}
    requested = dict.fromkeys(f"{kind} {name}" for kind, chosen, _ in asked for name in chosen or ())
    return [name for name in requested if name not in offered]


def default_suite(request: RunRequest) -> list[RunRequest]:
    """A request for each task of the default suite. The suite's settings apply where the request has none."""
    with registry.naming(configs.FOLDER / "suite.yaml"):
        entries = [registry.validated(SuiteEntry, entry) for entry in configs.load_yaml("suite.yaml")]
    return [
        replace(
            request,
            tasks=[entry.task],
            engines=names(request.engines) or entry.engines,
            backends=names(request.backends) or entry.backends,
            precisions=names(request.precisions) or entry.precisions,
            budget=names(request.budget) or entry.budget,
            scale=entry.scale if request.scale is None else request.scale,
        )
        for entry in entries
    ]


def selection(request: RunRequest) -> TaskSelection:
    """The selection of a request for one task. Raises UsageError for an unknown name, and for parameters that the task refuses."""
    (name,) = names(request.tasks)
    task = registry.task(name)
    extras.require("torch", f"a run of {name}")
    if request.params:
        task = checked(task.with_params(texts(request.params)))
    check_cluster(task, request.workers, request.scheduler)
    precisions = names(request.precisions)
    precisions = [] if precisions == ["all"] else precisions
    registry.check_precisions(precisions, task.precisions)
    scale = float(request.scale or task.scale)
    return TaskSelection(
        task=task,
        engines=names(request.engines) or None,
        backends=names(request.backends) or None,
        precisions=precisions or task.precisions,
        device=request.device or None,
        budgets=[budgets.resolve(budget) for budget in names(request.budget) or ["seed-cpu"]],
        scale=scale,
        seed=request.seed,
        repeat=request.rounds,
        workers=request.workers,
        scheduler=request.scheduler,
        train_scale=train_sample(request.train_scale, scale),
    )


def checked(task: TaskConfig) -> TaskConfig:
    """The task, if it does not refuse its parameters. Raises UsageError."""
    entry = load_entry(task.entry, task.name)
    if isinstance(entry, ParamsChecker):
        entry.check(task.name, task.params)
    return task


def train_sample(train_scale: float | None, scale: float) -> float | None:
    """The scale of the training rows, None if it is that of the data. Raises UsageError if it is above it."""
    if train_scale is not None and train_scale > scale:
        raise UsageError(
            f"--train-scale {train_scale:g} is above --scale {scale:g}",
            "the training rows are a sample of those of --scale",
        )
    return None if train_scale == scale else train_scale


def texts(params: Mapping[str, object]) -> dict[str, str]:
    """Parameters as YAML texts, as `--set` takes them. Raises UsageError for a value that YAML cannot represent."""
    return {name: as_yaml(name, value) for name, value in params.items()}


def as_yaml(name: str, value: object) -> str:
    """A parameter's value as YAML; a string is YAML already. Raises UsageError for a value that YAML cannot represent."""
    try:
        return value if isinstance(value, str) else yaml_text(value)
    except yaml.YAMLError as error:
        raise UsageError(
            f"params: {name} is {brief(value)}, not a value of YAML",
            "use numbers, strings, lists, mappings, True or False",
        ) from error


def check_numbers(seed: int = 0, workers: int = 0, rounds: int = 1) -> None:
    """Raises UsageError for a whole number out of its range."""
    ranges = {
        "seed": (seed, 0, MOST_SEED),
        "workers": (workers, 0, MOST_COUNT),
        "rounds": (rounds, 1, MOST_COUNT),
    }
    for name, (value, least, most) in ranges.items():
        if not isinstance(value, int) or not least <= value <= most:
            raise UsageError(f"{name} is {value!r}, not a whole number from {least} to {most}")


def check_device(device: str) -> None:
    """Raises UsageError unless the device is `cpu`, `cuda` or empty (the default)."""
    if device not in ("", *DEVICES):
        raise UsageError(f"unknown device {device!r}", "known: cpu, cuda (an NVIDIA GPU)")


def check_data(data: str | Path | None, **sizes: bool) -> None:
    """Raises UsageError if official files are given and also a size of generated data, by the field of the request."""
    for name, is_given in sizes.items():
        if data and is_given:
            raise UsageError(
                f"{option_of(name)} sizes generated data; files of --data are used whole",
                "leave out one of the two",
            )


def check_cluster(task: TaskConfig, workers: int, scheduler: str) -> None:
    """Raises UsageError if two clusters are given, or if the task cannot run on a cluster."""
    if workers and scheduler:
        raise UsageError(
            "--workers starts a cluster, --scheduler uses a running one", "leave out one of the two"
        )
    if (workers or scheduler) and not task.clustered:
        clustered = ", ".join(name for name, config in registry.tasks().items() if config.clustered)
        raise UsageError(
            f"{task.name} runs in one process",
            f"leave out --workers and --scheduler; {clustered} can use them",
        )


def check_budgets(runs: Iterable[Run], policy: str) -> list[str]:
    """The limits of the runs' budgets that this machine cannot provide, in words. Raises UsageError for them if the policy is `fail`."""
    if policy not in POLICIES:
        raise unknown_name("--on-unmet-budget", policy, POLICIES)
    limits = {run.budget.name: run.budget for run in runs}
    problems = [
        f"budget {name}: {problem}" for name, limit in limits.items() for problem in budgets.unmet(limit)
    ]
    if problems and policy == "fail":
        raise UsageError("; ".join(problems), "choose a smaller --budget, or --on-unmet-budget warn")
    return problems


def cpu_budgets() -> Sequence[str]:
    """The budgets of the two CPU baselines: `seed-cpu`, and the same limits on all cores of this machine."""
    return ["seed-cpu", f"{len(budgets.allowed_cores())}c20g24h"]
