"""How many rows are processed at a time. The parameters set it; if a parameter is 0, it depends on engine and device."""

from buzzer.engine import device, frames
from buzzer.models.recsys2021.params import Context

PIECE_ROWS = {"cpu": 500_000, "cuda": 3_000_000}  # winners: 3 million
# Pieces of a CPU engine are parsed one by one, because text takes memory, and predicted together, because that reads all lookup tables
# and passes over all users' vectors.
JOINED_ROWS = 2_000_000
BATCH_ROWS = {"cpu": 2048, "cuda": 65_536}
BLOCK_ROWS = {"cpu": 16_384, "cuda": 3_000_000}
# Estimated GPU memory for each row: about 1.5 kB of columns, and the temporary memory of joins and matrices.
PIECE_ROW_BYTES = 4096


def piece_rows(context: Context, workers: int = 1) -> int:
    """Rows of a piece: the parameter `piece_rows`, else a default of the engine. On a GPU the default also depends on its memory and on
    the number of workers."""
    if requested := context.params.piece_rows:
        return requested
    kind = frames.info(context.engine).device
    if kind == "cpu":
        return PIECE_ROWS[kind]
    memory = context.gpu_memory_bytes or min(device.gpu_memory(), default=0)
    most = max(PIECE_ROWS[kind] // workers, PIECE_ROWS["cpu"])
    return min(most, memory // PIECE_ROW_BYTES) if memory else most


def joined_rows(context: Context) -> int:
    """Rows that are predicted together: those of a piece, and without the parameter `piece_rows` more of them on a CPU engine."""
    rows = piece_rows(context)
    given = context.params.piece_rows or frames.info(context.engine).device != "cpu"
    return rows if given else max(rows, JOINED_ROWS)


def batch_rows(context: Context) -> int:
    """Rows of a network's batch: the parameter `predict_batch`, else the device's default."""
    return context.params.predict_batch or BATCH_ROWS[context.device]


def block_rows(context: Context) -> int:
    """Rows that trees predict from one copy of columns. On a CPU the number is small, so that the allocator reuses memory."""
    return BLOCK_ROWS[context.device]


def details(context: Context, workers: int = 1) -> dict[str, int]:
    """`piece_rows` and `batch_rows`, for the record."""
    return {"piece_rows": piece_rows(context, workers), "batch_rows": batch_rows(context)}
