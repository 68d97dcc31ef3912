"""Plans the runs of `buzzer frontier`: a BERT in every precision, and cut to fewer layers."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, cast

from buzzer.errors import UsageError
from buzzer.suite import registry
from buzzer.suite.requests import FrontierRequest, RunRequest
from buzzer.suite.run.plan import RunPlan, task_by_task
from buzzer.suite.run.resolve import check_device, check_numbers, planned, selection
from buzzer.suite.run.worker import load_entry

TASK = "bert-intent-precision"
NAMES = ("bert", "minilm-l6")  # the task's own weights; any other name must be a Hugging Face BERT folder
CUT_PRECISIONS = ("fp32", "int8")
CUT_CHECKPOINTS = ("float", "int8")


class Layered(Protocol):
    """A task whose model can be cut to fewer layers."""

    def layers(self, params: Mapping[str, Any]) -> int:
        """The number of layers of the whole model."""
        ...


def plan_of(request: FrontierRequest) -> tuple[RunPlan, int]:
    """The plan, and the number of layers of the whole model.

    The plan has the whole model in every precision, then each cut model in FP32 and INT8. Raises UsageError for a model that cannot be
    fine-tuned, and for an unknown name or a number out of range.
    """
    check_numbers(seed=request.seed, rounds=request.rounds)
    check_device(request.device)
    base = RunRequest(
        TASK,
        backends=request.backends,
        precisions=request.precisions,
        device=request.device,
        budget=request.budget,
        data=request.data,
        seed=request.seed,
        rounds=request.rounds,
        params=weights_of(str(request.model)),
    )
    whole = selection(base)
    full = layers_of(whole.task)
    precisions = [name for name in whole.precisions if name in CUT_PRECISIONS]
    selections = [whole]
    for layers in cuts(full) if precisions else ():
        cut = {"layers": layers, "checkpoints": list(CUT_CHECKPOINTS)}
        selections.append(selection(replace(base, precisions=precisions, params={**base.params, **cut})))
    return planned(task_by_task(selections), base), full


def cuts(layers: int) -> list[int]:
    """The numbers of layers of the cut models: all from full - 1 down to 2, or 3/4, 1/2 and 1/4 of a model of more than 6 layers."""
    if layers <= 6:
        return list(range(layers - 1, 1, -1))
    return [layers * share // 4 for share in (3, 2, 1)]


def weights_of(model: str) -> dict[str, str]:
    """The task's parameters for a model. Raises UsageError for a model that cannot be fine-tuned."""
    if model in NAMES:
        return {}
    if not Path(model).is_dir():
        hint = f"known: {', '.join(NAMES)}; or a Hugging Face BERT folder with a tokenizer"
        raise UsageError(f"a frontier needs a BERT with trained weights; {model} is not one", hint)
    return {"weights": json.dumps(str(Path(model).resolve()))}


def layers_of(task: registry.TaskConfig) -> int:
    """The number of layers of the task's whole model."""
    return cast(Layered, load_entry(task.entry, task.name)).layers(task.params)
