"""The networks' vectors of users. Each network has a file, of which a piece reads the rows of its users."""

import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from buzzer.engine.frames.base import Array, on_host
from buzzer.errors import DataError

BLOCK = 4096  # rows that are read from one mapping of the file; a mapping keeps the pages that it has read
RESIDENT = 0.25  # a table stays on the GPU if it needs at most this share of the GPU's free memory


def path(network: Path) -> Path:
    """The file of a table, float32 or float16 [users, user_dim], beside the file of its network's other weights."""
    return network.with_name(f"{network.stem}-users.npy")


def write(file: Path, shape: tuple[int, int], kind: str, blocks: Iterable[Array]) -> None:
    """Write a table [users, user_dim] of the type `kind` from blocks of its rows, so that only a block is in memory.

    Raises DataError if the disk has too little space for it.
    """
    needed, free = np.dtype(kind).itemsize * shape[0] * shape[1], shutil.disk_usage(file.parent).free
    if needed > free:
        raise DataError(
            f"vectors of {shape[0]:,} users need {needed / 1e9:,.1f} GB of disk, {free / 1e9:,.1f} GB are free",
            "free some space, set BUZZER_CACHE to a folder on a larger disk, or raise the parameter user_rows",
        )
    partial = file.with_suffix(".tmp")
    with partial.open("wb") as out:
        header = {"descr": np.dtype(kind).str, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(out, header)
        for block in blocks:
            out.write(np.ascontiguousarray(block, dtype=kind).data)
    partial.replace(file)


@dataclass(frozen=True)
class PieceVectors:
    """The vectors of a piece's users, on the host or the device."""

    vectors: Any  # [users, user_dim]
    places: Any  # int64 [rows, sides]: the rows of `vectors`

    def of(self, rows: Array) -> Any:
        """The vectors of these rows, float32 [rows, sides, user_dim]: an array on the host, or a torch tensor on the device."""
        if isinstance(self.vectors, np.ndarray):
            return self.vectors[self.places[rows]]
        import torch

        return self.vectors[self.places[torch.as_tensor(rows, device=self.vectors.device)]].float()


class UserTable:
    """A table in a file. The host's memory never holds more than the rows of a piece's users."""

    def __init__(self, file: Path, device: str = "cpu", memory: int | None = None) -> None:
        """device: where the vectors are needed.  memory: bytes of its memory that may be used, None = all that is free.

        A table that fits on a GPU (RESIDENT) is copied to it.
        """
        self.file, self.device = file, device
        self.resident: Any = self._on_device(memory) if device != "cpu" else None

    def _on_device(self, memory: int | None) -> Any:
        """The table on the device, or None if it is too large."""
        import torch

        table = np.load(self.file, mmap_mode="r")
        free = torch.cuda.mem_get_info()[0]
        if table.nbytes > RESIDENT * (min(free, memory) if memory else free):
            return None
        whole = torch.empty(table.shape, dtype=getattr(torch, table.dtype.name), device=self.device)
        for start in range(0, len(table), BLOCK):
            whole[start : start + BLOCK] = torch.tensor(self._block(slice(start, start + BLOCK)))
        return whole

    def _block(self, rows: Any) -> Array:
        """Rows of the file, in its type. The mapping is closed afterwards, so that its pages do not count as memory in use."""
        return np.array(np.load(self.file, mmap_mode="r")[rows])

    def read(self, codes: Array) -> Array:
        """The vectors float32 [codes, user_dim] of sorted codes, int64 [codes]."""
        first = self._block(codes[:BLOCK])
        vectors = np.empty((len(codes), first.shape[1]), dtype=np.float32)
        vectors[:BLOCK] = first
        for start in range(BLOCK, len(codes), BLOCK):
            vectors[start : start + BLOCK] = self._block(codes[start : start + BLOCK])
        return vectors

    def of_piece(self, codes: Array) -> PieceVectors:
        """The vectors of a piece's users. codes: int64 [rows, sides], on the host or the device."""
        if self.resident is not None:
            import torch

            return PieceVectors(self.resident, torch.as_tensor(codes, device=self.device))
        distinct, places = np.unique(on_host(codes), return_inverse=True)
        vectors, places = self.read(distinct), places.reshape(codes.shape)
        if self.device == "cpu":
            return PieceVectors(vectors, places)
        import torch

        return PieceVectors(*(torch.from_numpy(array).to(self.device) for array in (vectors, places)))
