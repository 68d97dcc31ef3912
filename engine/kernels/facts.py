"""Facts that the command line prints as JSON objects: about launches, code, tiles, modes and probes."""

from dataclasses import asdict, dataclass, fields, is_dataclass


@dataclass(frozen=True)
class Facts:
    """Base of the dataclasses here and in the modules that measure. Fields are the keys of a JSON object."""

    def as_json(self) -> dict[str, object]:
        """The fields by name, nested dataclasses as objects. A field with the default None is left out while it is None."""
        values = {field.name: (getattr(self, field.name), field.default) for field in fields(self)}
        return {
            name: asdict(value) if is_dataclass(value) and not isinstance(value, type) else value
            for name, (value, default) in values.items()
            if value is not None or default is not None
        }


@dataclass(frozen=True, kw_only=True)
class LaunchFacts(Facts):
    """A kernel with its launch options and its work. Sizes of tiles or blocks are None for kernels that have none.

    constant_bytes: weights and tables that it reads.  moved_bytes: activations that it reads and writes.
    flops: a multiply-add is two.
    """

    kernel: str
    grid: tuple[int, ...]
    warps: int
    stages: int
    rows: int | None = None
    columns: int | None = None
    depth: int | None = None
    split: int | None = None
    keys: int | None = None
    constant_bytes: int
    moved_bytes: int
    flops: int


@dataclass(frozen=True)
class CodeFacts(Facts):
    """What compiled code needs: registers and bytes of local memory per thread, bytes of shared memory per program, and the
    tensor core instruction ("wgmma", "mma" or "none")."""

    registers: int
    local: int
    shared: int
    tensor_cores: str


@dataclass(frozen=True)
class FloorFacts(Facts):
    """The least time of a kernel on an H100, in microseconds."""

    floor_us: float


@dataclass(frozen=True)
class PlanFacts(Facts):
    """Sums over the kernels of a run; floor_us: microseconds on an H100."""

    kernels: int
    constant_bytes: int
    moved_bytes: int
    flops: int
    floor_us: float
