"""Facts about launches and compiled code that `python -m buzzer.engine.fused` prints as JSON objects."""

from dataclasses import asdict, dataclass, fields, is_dataclass


@dataclass(frozen=True)
class Facts:
    """Base class of all printed facts. The fields are the keys of a JSON object."""

    def as_json(self) -> dict[str, object]:
        """The fields by name, nested dataclasses as objects. A field whose default is None is left out if it is None."""
        values = {field.name: (getattr(self, field.name), field.default) for field in fields(self)}
        return {
            name: asdict(value) if is_dataclass(value) and not isinstance(value, type) else value
            for name, (value, default) in values.items()
            if value is not None or default is not None
        }


@dataclass(frozen=True, kw_only=True)
class LaunchFacts(Facts):
    """A kernel with its launch options and its work. Tile and block sizes are None for kernels without tiles or blocks.

    constant_bytes: bytes of the weights and tables that it reads.  moved_bytes: bytes of the activations that it reads and
    writes.  flops: a multiply-add counts as two.
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
    """Resources of compiled code: registers and bytes of local memory per thread, bytes of shared memory per program, and the
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
    """Sums over the kernels of a run. floor_us: least microseconds on an H100."""

    kernels: int
    constant_bytes: int
    moved_bytes: int
    flops: int
    floor_us: float
