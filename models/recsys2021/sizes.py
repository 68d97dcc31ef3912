"""How many rows are worked on at a time, where the parameters leave it to the engine and the device (0)."""

from typing import Any

from buzzer.engine import device, frames
from buzzer.errors import UsageError
from buzzer.models.api.context import RunContext

PIECE_ROWS = {"cpu": 500_000, "gpu": 3_000_000}  # winners: 3 million
BATCH_ROWS = {"cpu": 4096, "cuda": 65_536}
BLOCK_ROWS = {"cpu": 16_384, "cuda": 3_000_000}
# Of GPU memory, an estimate: about 1.5 kB of columns, and what joins and matrices hold beside them.
PIECE_ROW_BYTES = 4096


def piece_rows(job: RunContext, workers: int = 1) -> int:
    """Rows of a piece: as asked for, else by the engine, and on a GPU by the memory that it may use and by how many share the pieces
    out."""
    if asked := given(job, "piece_rows"):
        return asked
    kind = frames.ENGINES[job.engine][3]
    if kind == "cpu":
        return PIECE_ROWS[kind]
    held = [gpu["memory_bytes"] for gpu in device.gpus() if "memory_bytes" in gpu]
    memory = job.gpu_memory_bytes or min(held, default=0)
    most = max(PIECE_ROWS[kind] // workers, PIECE_ROWS["cpu"])
    return min(most, memory // PIECE_ROW_BYTES) if memory else most


def batch_rows(job: RunContext) -> int:
    """Rows that a network predicts in one run: as asked for, else by the device."""
    return given(job, "predict_batch") or BATCH_ROWS[job.device]


def block_rows(job: RunContext) -> int:
    """Rows that trees predict from one copy of columns: on a CPU few enough that memory is used again, not asked for anew."""
    return BLOCK_ROWS[job.device]


def given(job: RunContext, name: str) -> int:
    """Raises UsageError for a number below 0."""
    asked: int = job.params[name]
    if asked < 0:
        raise UsageError(f"{name}={asked} is no number of rows", "0 leaves it to the engine and the device")
    return asked


def told(job: RunContext, workers: int = 1) -> dict[str, Any]:
    """What was used, for the record."""
    return {"piece_rows": piece_rows(job, workers), "batch_rows": batch_rows(job)}
