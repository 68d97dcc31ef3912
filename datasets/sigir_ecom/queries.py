"""The schema of the organisers' test files, as pydantic models: right types, finite numbers, whole numbers of 18 digits at most."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from buzzer.datasets.sigir_ecom.schema import DIMS

Hash = Annotated[str, StringConstraints(pattern="^[0-9A-Fa-f]{64}$")]
Number = Annotated[float, Field(gt=-1e35, lt=1e35)]  # within float32; neither NaN nor infinite
Vector = Annotated[list[Number], Field(min_length=DIMS, max_length=DIMS)]
Time = Annotated[int, Field(gt=-(10**18), lt=10**18)]


class Event(BaseModel):
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
    model_config = ConfigDict(strict=True)

    query: Annotated[list[Event], Field(min_length=1)]

    @model_validator(mode="after")
    def of_one_session(self) -> "Query":
        if len({event.session_id_hash for event in self.query}) > 1:
            raise ValueError("events of two sessions")
        return self


class Recommendation(Query):
    label: list[Hash] = Field(default_factory=list)


class Intention(Query):
    label: Annotated[int, Field(ge=0, le=1)] = 0
    nb_after_add: Annotated[int, Field(ge=0, le=10, multiple_of=2)]
