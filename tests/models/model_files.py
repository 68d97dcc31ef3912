"""Loads files of models that were damaged on purpose, as `buzzer bench` does: `python model_files.py FOLDER`, a line of JSON each.

Each in a process of its own, since native code may end it: that is one record of a bench run.
"""

import importlib
import json
import os
import resource
import sys
from pathlib import Path
from typing import Any

import numpy as np

HEAVY = (
    "onnx.shape_inference",
    "safetensors.torch",
    "torch.utils.flop_counter",
    "buzzer.engine.infer.backends.onnxruntime",
    "buzzer.engine.infer.backends.xgboost",
    "buzzer.engine.quant",
    "buzzer.models.bert.encoder",
    "buzzer.models.bert.tokenizer",
    "buzzer.models.onnx_file",
    "buzzer.suite.bench.protocol",
    "buzzer.suite.bench.plan",
)
MOST_BYTES = 8 << 30  # of address space: what a damaged file asks for must not take the machine with it


def ask(params: dict[str, str]) -> Any:
    from buzzer.models.api.bench import BenchSpec

    return BenchSpec(2, 8, 2, "fixed", "padded", 0, params)


def onnx(path: Path) -> None:
    """Plan, right answers and a run of an ONNX file."""
    from buzzer.engine import infer
    from buzzer.models.onnx_file import TARGET
    from buzzer.suite.bench import answers, identity

    identity.of_path(path)
    loaded = TARGET.load(ask({"path": str(path)}))
    answers.compute(loaded, "cpu")
    axes: dict[str, dict[int, str]] = {name: {} for name in loaded.batches[0]}
    own = {"backend": "onnxruntime", "example": loaded.batches[0], "outputs": loaded.outputs, "dynamic": axes}
    offered = getattr(infer, "precisions", lambda module, path: ("fp32",))(infer.load("onnxruntime"), path)
    with infer.prepare(path, precision=offered[0], **own) as session:
        session.run(loaded.batches[0])


def bert(path: Path) -> None:
    """Load a folder with a tokenizer, and run it."""
    from buzzer.models.bert import bench

    bench.lines_of = lambda seed: (["what is my balance", "play some music"] * 20, "generated")
    loaded = bench.TARGET.load(ask({"weights": str(path)}))
    loaded.reference(loaded.batches[0])


def trees(path: Path) -> None:
    from buzzer.engine import infer

    example = {"features": np.zeros((2, 3), dtype="float32")}
    with infer.prepare(path, backend="xgboost", example=example) as session:
        session.run(example)


def outcome(path: Path) -> tuple[str, str]:
    """The kind of what came of it, and the message."""
    from buzzer.errors import BuzzerError

    drive = {"onnx": onnx, "bert": bert, "trees": trees}[path.name.split("-")[1].split(".")[0]]
    try:
        drive(path)
    except BuzzerError as error:
        return type(error).__name__, error.message
    except MemoryError:
        return "MemoryError", ""  # its record is `host-oom`
    except BaseException as error:  # noqa: BLE001  panics of Rust are none of Exception's
        return f"unhandled {type(error).__name__}", str(error)[:300]
    return "loaded", ""


def main(folder: Path) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MOST_BYTES, MOST_BYTES))
    for name in HEAVY:
        importlib.import_module(name)  # once for all of them
    for path in sorted(folder.iterdir()):
        if (child := os.fork()) == 0:
            print(json.dumps([path.name, *outcome(path)]), flush=True)
            os._exit(0)
        if code := os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]):
            print(json.dumps([path.name, "signal", str(-code)]), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
