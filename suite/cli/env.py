"""`buzzer env`: what this machine has, and what is missing for the rest."""

import json
from collections.abc import Callable
from dataclasses import asdict
from typing import Annotated, Any

import typer
from rich.console import Console

from buzzer.engine import frames, infer
from buzzer.errors import UnsupportedError
from buzzer.suite import registry
from buzzer.suite.records import machine
from buzzer.suite.report.console import show
from buzzer.suite.report.table import table
from buzzer.suite.run import cgroups, counters, limits


def main(as_json: Annotated[bool, typer.Option("--json", help="One object on stdout.")] = False) -> None:
    """Show the machine, the versions, and which engines and backends can run here."""
    facts = content()
    if as_json:
        print(json.dumps(facts))
        return
    console = Console()
    console.print(
        machine.describe(machine.machine()), f"limits: {facts['enforcement']}", sep="\n", highlight=False
    )
    for line in limits_told(facts["polled_because"]):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    for kind in ("engines", "backends", "counters"):
        lines = [(name, "no" if problem else "yes", problem) for name, problem in facts[kind].items()]
        show(table("", (kind, "here", "what is missing"), lines), console)
    console.print(", ".join(f"{k} {v}" for k, v in facts["versions"].items()), highlight=False)


def limits_told(because: dict[str, Any] | None) -> list[str]:
    """Why runs are only watched, and what to type to have them limited by the kernel."""
    if because is None:
        return []
    told = [f"  {because['reason']}"]
    told += ["  to have limits enforced by the kernel, type:"] if because["commands"] else []
    return told + [f"    {command}" for command in because["commands"]]


def content() -> dict[str, Any]:
    """Machine, versions, and a problem (or "") for each engine and backend."""
    enforced = limits.cgroups_work()
    return {
        "machine": machine.machine().model_dump(),
        "versions": machine.versions(),
        "git_commit": machine.git_commit(),
        "enforcement": "cgroups" if enforced else "polled",
        "polled_because": None if enforced else asdict(cgroups.missing()),
        "engines": {name: problem(frames.load, name) for name in registry.engines()},
        "backends": {name: problem(infer.load, name) for name in registry.backends()},
        "counters": counters.missing(),
    }


def problem(load: Callable[[str], Any], name: str) -> str:
    """Why `name` cannot run here, or ""."""
    try:
        load(name)
    except UnsupportedError as error:
        return f"{error.message}; {error.hint}" if error.hint else error.message
    return ""
