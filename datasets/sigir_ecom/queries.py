"""The schema of the test files as pydantic models: exact types, finite numbers, integers of at most 18 digits."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from buzzer.datasets.sigir_ecom.schema import DIMS

Hash = Annotated[str, StringConstraints(pattern="^[0-9A-Fa-f]{64}$")]
Number = Annotated[float, Field(gt=-1e35, lt=1e35)]  # within the range of float32, and finite
Vector = Annotated[list[Number], Field(min_length=DIMS, max_length=DIMS)]
Time = Annotated[int, Field(gt=-(10**18), lt=10**18)]


class Event(BaseModel):
    """One event of a session."""

    model_config = ConfigDict(strict=True, extra="forbid")

    query_vector: Vector | None
    clicked_skus_hash: list[Hash] | None
    product_skus_hash: list[Hash] | None
    server_timestamp_epoch_ms: Time
    event_type: Literal["pageview", "event_product"] | None
    product_action: Literal["", "detail", "add", "remove", "purchase"] | None
    product_sku_hash: Hash | None
    hashed_url: Hash | None = None
    session_id_hash: Hash
    is_search: bool


class Query(BaseModel):
    """The first events of one session."""

    model_config = ConfigDict(strict=True)

    query: Annotated[list[Event], Field(min_length=1)]

    @model_validator(mode="after")
    def of_one_session(self) -> "Query":
        """Raises ValueError if the events have different sessions."""
        if len({event.session_id_hash for event in self.query}) > 1:
            raise ValueError("its events belong to different sessions")
        return self


class Recommendation(Query):
    """A query of the first task, with the next products."""

    label: list[Hash] = Field(default_factory=list)


class Intention(Query):
    """A query of the second task: 1 if the cart is bought, else 0."""

    label: Annotated[int, Field(ge=0, le=1)] = 0
    nb_after_add: Annotated[int, Field(ge=0, le=10, multiple_of=2)]
