"""The options that several commands share, each declared once: name, help, group in the help text, and completion."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

from buzzer.suite.requests import path

# Groups of options in the help text.
WHAT = "What to run"
DATA = "Data and training"
LIMITS = "Limits and repetitions"
OUTPUT = "Records and output"
OF_PATHS = ("FILE", "FOLDER", "PATH")  # metavars of options whose values are paths


def completes(known: Callable[[], Iterable[str]]) -> Callable[[str], list[str]]:
    """A function for shell completion: completes the last of several names that are separated by commas."""

    def complete(incomplete: str) -> list[str]:
        before, comma, last = incomplete.rpartition(",")
        return [f"{before}{comma}{name}" for name in known() if name.startswith(last)]

    return complete


def task_names() -> list[str]:
    """The names of all tasks, and `all`."""
    from buzzer.suite import registry

    return [*registry.tasks(), "all"]


def engine_names() -> list[str]:
    """The names of all engines, and `all`."""
    from buzzer.suite import registry

    return [*registry.engines(), "all"]


def backend_names() -> list[str]:
    """The names of all backends, of the pairs that tasks offer, and `all`."""
    from buzzer.suite import registry

    return [*registry.backends(), *registry.backend_pairs(), "all"]


def precision_names() -> list[str]:
    """The names of all precisions, and `all`."""
    from buzzer.suite import registry

    return [*registry.precisions(), "all"]


def budget_names() -> list[str]:
    """The names of all budgets."""
    from buzzer.configs import load_yaml

    return [*load_yaml("budgets.yaml")]


def model_names() -> list[str]:
    """The names of all models of `buzzer bench`."""
    from buzzer.suite import registry

    return [*registry.models()]


def dataset_names() -> list[str]:
    """The names of all data sets and tasks."""
    from buzzer.suite import registry

    return [*registry.datasets(), *registry.tasks()]


def device_names() -> list[str]:
    """The names of all devices."""
    return ["cpu", "cuda"]


def option(group: str, text: str, *names: str, metavar: str | None = None, **more: Any) -> Any:
    """An option in a group of the help text."""
    if metavar in OF_PATHS:
        more["parser"] = path
    return typer.Option(*names, help=text, metavar=metavar, rich_help_panel=group, **more)


def path_argument(text: str, metavar: str | None = None) -> Any:
    """An argument whose value is one or several paths."""
    return typer.Argument(help=text, metavar=metavar, parser=path)


def names_option(text: str, known: Callable[[], Iterable[str]], group: str = WHAT) -> Any:
    """An option whose value is one or several names."""
    return option(group, text, metavar="NAMES", autocompletion=completes(known))


Engine = Annotated[str, names_option("Feature engines, separated by commas, or all.", engine_names)]
Backend = Annotated[str, names_option("Inference backends, separated by commas, or all.", backend_names)]
Precision = Annotated[str, names_option("Precisions, separated by commas, or all.", precision_names)]
Device = Annotated[
    str, names_option("cpu or cuda; default: what the engine runs on, else cpu.", device_names)
]
Budget = Annotated[
    str,
    names_option("Budgets, separated by commas: names, or limits such as 1c20g24h.", budget_names, LIMITS),
]
Data = Annotated[
    Path | None, option(DATA, "Folder of the official files; default: generated data.", metavar="FOLDER")
]
SCALE = option(DATA, "Share of the official size to generate.", metavar="SHARE")
Scale = Annotated[float | None, SCALE]
TrainScale = Annotated[
    float | None,
    option(
        DATA,
        "Share of the official training rows: a sample of those of --scale; default: all of them.",
        metavar="SHARE",
    ),
]
Seed = Annotated[int, option(DATA, "Seed for data, training, random weights and inputs.", metavar="N")]
Set = Annotated[list[str] | None, option(DATA, "A task parameter; repeatable.", "--set", metavar="KEY=VALUE")]
Rounds = Annotated[int, option(LIMITS, "Rounds; each runs every variant once.", metavar="N")]
OnUnmetBudget = Annotated[
    str, option(LIMITS, "fail or warn if the machine has less than the budget.", metavar="POLICY")
]
Out = Annotated[Path, option(OUTPUT, "Folder of the records.", metavar="FOLDER")]
Resume = Annotated[
    bool,
    option(OUTPUT, "Skip runs that have an ok record in --out, and go on with an interrupted one."),
]
DryRun = Annotated[
    bool, option(OUTPUT, "Print the plan, with estimated times, and run nothing.", "--dry-run")
]
Json = Annotated[bool, option(OUTPUT, "Print JSON, one object per line.", "--json")]
Paths = Annotated[list[Path] | None, path_argument("Records or folders of records.", "PATH...")]
Task = Annotated[str, typer.Argument(help="Task name.", autocompletion=completes(task_names), metavar="TASK")]
Dataset = Annotated[
    str, typer.Argument(help="Task or data set.", autocompletion=completes(dataset_names), metavar="NAME")
]
