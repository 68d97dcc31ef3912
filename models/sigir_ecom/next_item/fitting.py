"""Trains the networks of a fit, tunes their tables on the visible part of the test, and weighs them with the counts."""

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from buzzer.engine.frames.base import Array
from buzzer.models.api import progress
from buzzer.models.blend import best_of, weigh
from buzzer.models.sigir_ecom.next_item import training
from buzzer.models.sigir_ecom.next_item.opened import BASELINE, ENSEMBLE, GUESSES, new_network
from buzzer.models.sigir_ecom.next_item.params import Context, NetworkSettings
from buzzer.models.sigir_ecom.next_item.sizes import Sizes
from buzzer.models.sigir_ecom.next_item.training import Trainer, TrainingSessions, Tuner, mrr
from buzzer.models.sigir_ecom.sessions.events import EventArrays
from buzzer.models.sigir_ecom.sessions.products import Products

Answers = dict[str, tuple[Array, Array]]  # by model: values and product codes, [rows, n]
History = dict[str, list[dict[str, float]]]
Prefixes = Callable[[], Generator[str, None, EventArrays]]


@dataclass(frozen=True)
class Fitted:
    """The outcome of training."""

    scores: dict[str, float]  # MRR@20 of each model and of the ensemble on the held-out sessions
    weights: dict[str, float]  # by model
    history: History  # by network


@dataclass(frozen=True)
class Job:
    """Everything that training needs."""

    context: Context
    networks: list[NetworkSettings]
    sizes: dict[str, Sizes]  # by network
    catalogue: Products
    arrays: EventArrays  # the training sessions
    prefixes: Prefixes  # reads the test sessions up to their cuts

    def run(self, baseline: Any, products: int, codes: int) -> Generator[str, None, Fitted]:
        """Train all networks, save them and weigh them with the baseline, a `Counts`. Yields the phase after each epoch."""
        params = self.context.params
        scored = codes if params.scored == "all" else products
        sessions = training.training_sessions(self.context, self.arrays, products, scored)
        widest = max((size.item_dim for size in self.sizes.values()), default=params.dim)
        vectors = training.first_vectors(self.context, sessions, codes, widest)
        own = training.answers_of(baseline, self.arrays, sessions.ends, params.length, "cpu")
        answers, history = {BASELINE: own}, {}
        test = None
        if any(settings.tune_epochs for settings in self.networks):
            prefixes = yield from self.prefixes()
            test = training.training_sessions(
                self.context, prefixes, products, scored, np.zeros(len(prefixes), dtype=bool)
            )
            yield "fit"
        for settings in progress.over(self.networks):
            trained = self._network(settings, sessions, vectors, test)
            answers[settings.name], history[settings.name] = yield from trained
        return Fitted(*weighed(answers, sessions.truth), history)

    def _network(
        self,
        settings: NetworkSettings,
        sessions: TrainingSessions,
        vectors: torch.Tensor | None,
        test: TrainingSessions | None,
    ) -> Generator[str, None, tuple[tuple[Array, Array], list[dict[str, float]]]]:
        """Train a network and save its weights. Returns its answers at the held-out cuts, and its history."""
        context, params, name = self.context, self.context.params, settings.name
        network = new_network(settings, self.sizes[name], self.catalogue, context.seed)
        if vectors is not None:
            network.items.start_from(training.narrowed(vectors, settings.item_dim))
        checkpoint = context.work / f"{name}.checkpoint"
        trainer = Trainer(context, settings, network, sessions, checkpoint, params.epochs, settings.lr)
        tuned_epochs = 0 if test is None else settings.tune_epochs
        share = params.epochs / max(params.epochs + tuned_epochs, 1)
        with progress.part(0.0, share):
            for _ in trainer.run(params.epochs, params.patience):
                yield "fit"
        answers = trainer.answers(params.candidates)
        if test is not None and tuned_epochs:
            tuner = Tuner(context, settings, network, test, None, tuned_epochs, settings.tune_lr)
            with progress.part(share, 1.0):
                for _ in tuner.run(tuned_epochs):
                    yield "fit"
        torch.save(network.cpu().state_dict(), context.work / f"{name}.pt")
        return answers, trainer.state.history


def weighed(answers: Answers, truth: Array) -> tuple[dict[str, float], dict[str, float]]:
    """MRR@20 of each model and the ensemble at the held-out cuts, and the ensemble's best weights. truth: product codes [rows]."""
    values, codes = (list(part) for part in zip(*answers.values(), strict=True))
    weights = weigh(values, codes, truth, mrr, GUESSES)
    scores = {
        f"valid_MRR@20_{name}": mrr(truth, best_of([value], [code], [1.0], GUESSES))
        for name, (value, code) in answers.items()
    }
    scores[f"valid_MRR@20_{ENSEMBLE}"] = mrr(truth, best_of(values, codes, weights, GUESSES))
    return scores, dict(zip(answers, weights, strict=True))
