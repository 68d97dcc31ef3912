"""The catalogue by product code: name, category, price, and vectors of description and image.

`save` writes products.npz, the arrays of `Products`.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from buzzer.datasets.sigir_ecom.schema import DIMS
from buzzer.engine.frames import Engine, Frame
from buzzer.engine.frames.base import Array, stack

FILE = "products.npz"


@dataclass(frozen=True)
class Products:
    """Arrays indexed by product code."""

    names: Array  # S64 [products]: product_sku_hash; empty for the codes of unseen and rare products
    category: Array  # int64 [products], 0 = unknown
    price: Array  # int64 [products]: bucket 1 to 10, 0 = unknown
    vectors: Array  # float32 [products, 2 * DIMS]: of description and image, each of length 1, or zeros

    def save(self, folder: Path) -> None:
        """Write the arrays to the folder."""
        np.savez(folder / FILE, **vars(self))


def load(folder: Path) -> Products:
    """The arrays that `Products.save` wrote."""
    with np.load(folder / FILE) as arrays:
        return Products(**{name: arrays[name] for name in arrays.files})


def fit(e: Engine, content: Frame, names: Frame, codes: Frame, categories: Frame) -> Products:
    """The catalogue by product code.

    content: of `events.read_content`; names: sku and product_sku_hash of all products in events; codes, categories: code tables.
    """
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
    pairs = stack(arrays, vectors, np.float32).reshape(-1, 2, DIMS)
    lengths = np.linalg.norm(pairs, axis=2, keepdims=True)
    out.vectors[at] = (pairs / np.maximum(lengths, 1e-9)).reshape(-1, 2 * DIMS)
    for table in (arrays, seen(e, names, codes)):
        out.names[table["code"]] = table["product_sku_hash"].astype("S64")
    return out


def seen(e: Engine, names: Frame, codes: Frame) -> dict[str, Array]:
    """Code and name of the products in events."""
    t = e.with_columns(e.categorify(names, "sku", codes, "code"), row=lambda c: c("code"))
    return e.to_numpy(t, ["code", "product_sku_hash"])


def principal_axes(vectors: Array, dims: int) -> Array:
    """The first principal axes of vectors [rows, DIMS], float64 [DIMS, dims]; the largest weight of each is positive."""
    centred = vectors.astype(np.float64) - vectors.mean(axis=0) if len(vectors) else np.eye(DIMS)
    axes = np.linalg.eigh(centred.T @ centred)[1][:, ::-1][:, :dims]
    return np.asarray(axes * np.sign(axes[np.abs(axes).argmax(axis=0), np.arange(dims)]))
