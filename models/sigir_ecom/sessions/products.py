"""What is known of products beside the sessions, by their code: names, category, price, vectors."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from buzzer.datasets.sigir_ecom.schema import DIMS
from buzzer.engine.frames import Engine, Frame
from buzzer.engine.frames.base import Array, stack

FILE = "products.npz"


@dataclass(frozen=True)
class Products:
    """Arrays by code."""

    names: Array  # S64 [products]: product_sku_hash; empty for codes that stand for no one product
    category: Array  # int64 [products], 0 = unknown
    price: Array  # int64 [products]: bucket 1 to 10, 0 = unknown
    vectors: Array  # float32 [products, 2 * DIMS]: description and image, each of length 1, or zeros

    def save(self, folder: Path) -> None:
        np.savez(folder / FILE, **vars(self))


def load(folder: Path) -> Products:
    with np.load(folder / FILE) as arrays:
        return Products(**{name: arrays[name] for name in arrays.files})


def fit(e: Engine, content: Frame, names: Frame, codes: Frame, categories: Frame) -> Products:
    """content: `events.read_content`; names: (sku, product_sku_hash) of all seen; codes: the products' code table."""
    t = e.categorify(content, "sku", codes, "code")
    t = e.categorify(t, "category_hash", categories, "category")
    vectors = [f"{kind}_{i}" for kind in ("description", "image") for i in range(DIMS)]
    arrays = e.to_numpy(t, ["code", "category", "price_bucket", "product_sku_hash", *vectors])
    total = int(e.height(codes)) + 2
    out = Products(
        np.zeros(total, dtype="S64"),
        np.zeros(total, dtype=np.int64),
        np.zeros(total, dtype=np.int64),
        np.zeros((total, 2 * DIMS), dtype=np.float32),
    )
    at = arrays["code"]
    out.category[at], out.price[at] = arrays["category"], np.clip(arrays["price_bucket"], 0, 10)
    whole = stack(arrays, vectors, np.float32).reshape(-1, 2, DIMS)
    out.vectors[at] = (whole / np.maximum(np.linalg.norm(whole, axis=2, keepdims=True), 1e-9)).reshape(
        -1, 2 * DIMS
    )
    for table in (arrays, seen(e, names, codes)):
        out.names[table["code"]] = table["product_sku_hash"].astype("S64")
    return out


def seen(e: Engine, names: Frame, codes: Frame) -> dict[str, Array]:
    t = e.with_columns(e.categorify(names, "sku", codes, "code"), row=lambda c: c("code"))
    return e.to_numpy(t, ["code", "product_sku_hash"])


def principal_axes(vectors: Array, dims: int) -> Array:
    """The directions in which vectors [rows, DIMS] vary most, float64 [DIMS, dims]; each with its largest weight above 0."""
    centred = vectors.astype(np.float64) - vectors.mean(axis=0) if len(vectors) else np.eye(DIMS)
    axes = np.linalg.eigh(centred.T @ centred)[1][:, ::-1][:, :dims]
    return np.asarray(axes * np.sign(axes[np.abs(axes).argmax(axis=0), np.arange(dims)]))
