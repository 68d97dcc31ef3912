"""The two models of a purchase task, boosted trees and an embedding network: trained, opened as sessions, and blended.

`fit` writes to the work folder xgboost.ubj (the trees), dlrm.pt (the network's weights), dlrm.onnx (its graph) and weights.json (the weight
of each model).
"""

import json
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from buzzer.engine import infer
from buzzer.engine.frames.base import Array, on_host
from buzzer.engine.infer import Session
from buzzer.errors import DataError
from buzzer.models.api import progress
from buzzer.models.sigir_ecom.purchase import blending
from buzzer.models.sigir_ecom.purchase.blending import Rows
from buzzer.models.sigir_ecom.purchase.params import Context

TREES, NETWORK, GRAPH, BLEND = "xgboost.ubj", "dlrm.pt", "dlrm.onnx", "weights.json"
OUTPUTS = ("probability",)
ENSEMBLE = "ensemble"
OF_TREES = 0.1  # share of the phase `fit` that trains the trees


@dataclass(frozen=True)
class Fitted:
    """The outcome of training."""

    probabilities: dict[str, Array]  # model (also the ensemble) -> probabilities of the held-out rows
    weights: dict[str, float]  # model -> weight
    history: list[dict[str, float]]  # the network's epoch, loss and valid_loss


def network_of(context: Context, numbers: int, codes: int, kinds: int, items: int) -> Any:
    """An untrained `Dlrm`. The arguments are as in `Dlrm`."""
    import torch

    from buzzer.models.sigir_ecom.purchase.dlrm import Dlrm

    params = context.params
    torch.manual_seed(context.seed)
    return Dlrm(numbers, codes, kinds, items, params.dim, params.hidden, params.dropout)


def fit(
    context: Context, network: Any, x: Any, rows: Rows, score_weights: Array
) -> Generator[str, None, Fitted]:
    """Train and save both models, and weigh them on the held-out rows. Yields its phases.

    x: the numbers of `rows`, on the device; score_weights: of the held-out rows. Raises DataError for too few sessions.
    """
    import torch

    check_enough(context, rows)
    with progress.part(0.0, OF_TREES):
        probabilities = {blending.TREES: fit_trees(context, x, rows)}
    yield "fit"
    with progress.part(OF_TREES, 1.0):
        history = yield from fit_network(context, network, rows)
    probabilities[blending.NETWORK] = held_out_probabilities(network, rows)
    weights = blending.weigh(probabilities, rows.y[rows.held], score_weights)
    yield "write"
    torch.save(network.cpu().state_dict(), context.work / NETWORK)
    infer.store(
        network, context.work / GRAPH, example_of(rows.numbers.shape[1], rows.codes.shape[1]), OUTPUTS
    )
    (context.work / BLEND).write_text(json.dumps(weights))
    return Fitted(blended(probabilities, weights), weights, history)


def check_enough(context: Context, rows: Rows) -> None:
    """Raises DataError if no row is held out, or if not both labels are among the other rows."""
    learned = rows.y[~rows.held]
    if not rows.held.any() or not 0 < learned.sum() < len(learned):
        raise DataError(
            f"{context.data}: too few sessions: some are held out, and the others must have both labels",
            "use more sessions, or a larger --scale",
        )


def fit_trees(context: Context, x: Any, rows: Rows) -> Array:
    """Save trees of all rows; returns the probabilities that trees of the other rows give to the held-out rows.

    Winners: 20 rounds, depth 6, eta .53, column sample .4, lambda 6.
    """
    from buzzer.engine.xgb import xgboost

    learn, held = ~rows.held, xgboost.DMatrix(rows.numbers[rows.held])
    with progress.part(0.0, 0.5):
        probabilities = trees(context, rows.numbers[learn], rows.y[learn], rows.weights[learn]).predict(held)
    with progress.part(0.5, 1.0):
        trees(context, x, rows.y, rows.weights).save_model(context.work / TREES)
    return np.asarray(probabilities)


def trees(context: Context, x: Any, y: Array, weights: Array) -> Any:
    """A Booster of rows x [rows, columns] with labels y, 0 or 1, and weights."""
    from buzzer.engine.xgb import xgboost
    from buzzer.models import boosting

    params = context.params
    settings = {
        "objective": "binary:logistic",
        "tree_method": "hist",
        "max_depth": params.depth,
        "eta": params.eta,
        "lambda": 6.0,
        "subsample": 0.8,
        "colsample_bytree": params.colsample,
        "base_score": float(np.average(y, weights=weights)),
        "seed": context.seed,
        "nthread": context.threads,
        "device": context.device,
    }
    data = xgboost.QuantileDMatrix(x, y, weight=weights / weights.mean(), nthread=context.threads)
    return boosting.train(settings, data, params.rounds)


def fit_network(context: Context, network: Any, rows: Rows) -> Generator[str, None, list[dict[str, float]]]:
    """Train the network. Yields the phase after each epoch and returns the history."""
    import torch

    from buzzer.models.sigir_ecom.purchase.dlrm import Trainer

    torch.set_num_threads(context.threads)
    # Rare table rows have denormal moments, which made a step ten times as long.
    torch.set_flush_denormal(True)
    trainer = Trainer(context, network, rows)
    for _ in trainer.run(context.params.epochs):
        yield "fit"
    return trainer.state.history


def held_out_probabilities(network: Any, rows: Rows) -> Array:
    """The network's predictions for the held-out rows."""
    import torch

    device = next(network.parameters()).device
    inputs = [torch.from_numpy(array[rows.held]).to(device) for array in (rows.numbers, rows.codes)]
    with torch.no_grad():
        return np.asarray(network.eval()(*inputs).cpu().numpy())


def example_of(numbers: int, codes: int) -> dict[str, Array]:
    """Two rows of the network's inputs with these numbers of columns."""
    return {
        "numbers": np.zeros((2, numbers), dtype=np.float32),
        "codes": np.zeros((2, codes), dtype=np.int64),
    }


def trained(folder: Path, network: Any) -> Any:
    """The network with the weights that `fit` saved."""
    import torch

    network.load_state_dict(torch.load(folder / NETWORK, weights_only=True))
    return network


def open_sessions(
    context: Context, untrained: Callable[[], Any], numbers: int, codes: int
) -> dict[str, Session]:
    """Sessions of the saved trees and of the saved network, on the run's backend (see `infer.split_backend`).

    untrained: makes the network without its weights.  numbers, codes: columns of the models' inputs.
    """
    example = example_of(numbers, codes)
    network = infer.Stored(context.work / GRAPH, lambda: trained(context.work, untrained()))
    on_networks, on_trees = infer.split_backend(context.backend)
    common: dict[str, Any] = {
        "outputs": OUTPUTS,
        "device": context.device,
        "threads": context.threads,
    }
    booster = infer.prepare(
        context.work / TREES, backend=on_trees, example={"features": example["numbers"]}, **common
    )
    net = infer.prepare(network, backend=on_networks, example=example, precision=context.precision, **common)
    return {blending.TREES: booster, blending.NETWORK: net}


def predict(sessions: Mapping[str, Session], batch: Mapping[str, Any]) -> dict[str, Array]:
    """Probabilities by model, [rows]. batch: `numbers` float32 [rows, columns], on the device, and `codes` int64 [rows, n]."""
    of_trees = sessions[blending.TREES].run({"features": batch["numbers"]})
    of_network = sessions[blending.NETWORK].run({**batch, "numbers": on_host(batch["numbers"])})
    return {
        blending.TREES: of_trees["probability"],
        blending.NETWORK: of_network["probability"],
    }


def close(sessions: Mapping[str, Session]) -> dict[str, Any]:
    """Close the sessions. Returns their descriptions by model."""
    described = {name: vars(session.describe()) for name, session in sessions.items()}
    for session in sessions.values():
        session.close()
    return described


def saved_weights(folder: Path) -> dict[str, float]:
    """The weight of each model that `fit` saved."""
    weights: dict[str, float] = json.loads((folder / BLEND).read_text())
    return weights


def blended(probabilities: dict[str, Array], weights: Mapping[str, float]) -> dict[str, Array]:
    """The models' probabilities and, as `ensemble`, their blend."""
    return probabilities | {ENSEMBLE: blending.blend(probabilities, weights)}
