"""`buzzer env`: shows this machine, what can run on it, and what is missing for the rest."""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Annotated

import typer

from buzzer.engine import frames, infer
from buzzer.engine.device import SEE_ENV, require_cuda
from buzzer.errors import UnsupportedError
from buzzer.suite import registry
from buzzer.suite.records import machine
from buzzer.suite.records.schema import Machine
from buzzer.suite.report.console import show, terminal
from buzzer.suite.report.table import table
from buzzer.suite.run import cgroups, counters, limits

EXAMPLES = """Examples:

buzzer env

buzzer env --json
"""


@dataclass(frozen=True)
class Environment:
    """This machine, and what can run on it. A problem says why something cannot run; it is empty if it can."""

    machine: Machine
    versions: Mapping[str, str]
    git_commit: str | None
    enforcement: str  # how budgets are enforced: "cgroups" or "polled"
    polled_because: cgroups.Missing | None  # why control groups cannot be used
    engines: Mapping[str, str]  # name -> problem
    backends: Mapping[str, str]  # name -> problem
    counters: Mapping[str, str]  # name -> problem

    def as_json(self) -> str:
        """One JSON object."""
        fields = {
            name: value for name, value in vars(self).items() if name not in ("machine", "polled_because")
        }
        polled = None if self.polled_because is None else asdict(self.polled_because)
        return json.dumps({"machine": self.machine.model_dump(), **fields, "polled_because": polled})


def main(as_json: Annotated[bool, typer.Option("--json", help="Print one object.")] = False) -> None:
    """Show the machine, the versions, and which engines and backends can run here."""
    here = environment()
    if as_json:
        print(here.as_json())
        return
    console = terminal()
    console.print(machine.describe(here.machine), f"limits: {here.enforcement}", sep="\n", highlight=False)
    for line in limits_lines(here.polled_because):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    kinds = {"engines": here.engines, "backends": here.backends, "counters": here.counters}
    for kind, problems in kinds.items():
        lines = [(name, "no" if problem else "yes", problem) for name, problem in problems.items()]
        show(table("", (kind, "works here", "what is missing"), lines), console)
    console.print(", ".join(f"{k} {v}" for k, v in here.versions.items()), highlight=False)


def limits_lines(missing: cgroups.Missing | None) -> list[str]:
    """Lines that say why runs are only polled, and which commands let the kernel enforce their limits."""
    if missing is None:
        return []
    how = ["  to have limits enforced by the kernel, run:"] if missing.commands else []
    return [f"  {missing.reason}", *how, *(f"    {command}" for command in missing.commands)]


def environment() -> Environment:
    """The environment of this machine, with a problem (or "") for each engine, backend and counter."""
    enforced = limits.cgroups_work()
    return Environment(
        machine=machine.machine(),
        versions=machine.versions(),
        git_commit=machine.git_commit(),
        enforcement="cgroups" if enforced else "polled",
        polled_because=None if enforced else cgroups.missing(),
        engines={name: problem_of(frames.load, name) for name in registry.engines()},
        backends={name: problem_of(load_backend, name) for name in registry.backends()},
        counters=counters.missing(),
    )


def load_backend(name: str) -> object:
    """The backend's module. Raises UnsupportedError, with the extra to install, if a package is missing, or if there is no device for it."""
    device = infer.info(name).devices[0]
    infer.check(name, device)
    if device == "cuda":
        require_cuda()
    return infer.load(name)


def problem_of(load: Callable[[str], object], name: str) -> str:
    """Why `name` cannot run here, or ""."""
    try:
        load(name)
    except UnsupportedError as error:
        return error.message if error.hint in ("", SEE_ENV) else f"{error.message}; {error.hint}"
    return ""
