"""The `recsys2021` task: predicts who replies to, retweets, quotes or likes which tweet, with boosted trees and networks in two stages.

`predict` processes one piece of rows at a time, so apart from the lookup tables its memory use does not grow with the rows.

`fit` writes to the work folder:
- code-<column>.parquet: codes of languages and media;
- train-<name>.parquet: sums of the training weeks' labels by `FeatureSet.keys`, and the language each reader sees most;
- raw-<name>.parquet: sums of the labels by `FeatureSet.raw`, if there are `split` trees;
- second-<name>.parquet: sums of the validation half's labels by `FeatureSet.week`;
- user-code.parquet: codes of frequent users, if there are networks;
- means.json: label means of the training weeks, `train`, and of the validation half, `validation`;
- vocabulary.npy: what each word piece adds to a decoded text, if the features have such texts (`vocabulary.save`);
- weights.npy: weights of the first stage's log odds, if it has several models (`ensemble.weigh`);
- trees-<model>-<engagement>.ubj: boosted trees of the first stage; trees-second-<model>-<engagement>.ubj: of the second stage. Further
  bags of a model end in -bag<number>, also those of networks;
- work.json: the work of these models for one row (`api.context.Work`);
- network-<name>.pt and network-<name>-users.npy (users' vectors), and for all networks networks.json (their sizes) and token_vectors.npy
  (frozen vectors); network-<name>.onnx is a network's graph.

Details of `fit`: `rows`, part (`train`, `val`) -> number of rows; `columns`, number of columns of the first stage; `piece_rows` and
`batch_rows`, rows processed at a time; `second_rows`, validation rows that the second stage trained on; `validation`, first-stage model
-> its official scores on these rows; with drawn tables `drawn`: `rows` and `scale` of the rows, `keys`, table -> its number of keys, and what drawing them
took, `wall_s`, `cpu_s`, `peak_memory_bytes` (of a process); with networks also
`token_vectors`, a description, `users_with_vectors`, a number, and under each network's name its history, a list of `epoch` and `loss`.

Details of `predict`: `pieces`, number of pieces; `table_rows`, number of rows of the lookup tables that were read (by the last sitting); `piece_rows`,
`batch_rows`; `joined_rows`, most rows of pieces that are predicted together (not on a cluster); `models`, names of the scored models; `workers`,
number of workers, only on a cluster; for generated data `ceilings`, the scores of the probabilities that the labels are drawn with, and `ceiling`, their RCE.

Both have the detail `weights`, "random", if the weights are.
"""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from buzzer.datasets import recsys2021 as dataset
from buzzer.datasets.contract import Progress
from buzzer.datasets.files import Files
from buzzer.datasets.recsys2021 import generator
from buzzer.datasets.workers import usable_cores
from buzzer.engine import frames
from buzzer.engine.frames import Engine
from buzzer.models.api import progress
from buzzer.models.api.context import Data, Result, Steps
from buzzer.models.dataset_task import DatasetTask, DataSource
from buzzer.models.recsys2021 import (
    distributed,
    drawn_tables,
    ensemble,
    features,
    fitting,
    sizes,
    vocabulary,
    work,
)
from buzzer.models.recsys2021.feature_sets import feature_set
from buzzer.models.recsys2021.lookup_tables import Occurring, collected
from buzzer.models.recsys2021.params import Context, Params
from buzzer.models.recsys2021.predicting import Predictor
from buzzer.models.recsys2021.submission import submission
from buzzer.models.weights import weights_detail, weights_notes
from buzzer.models.work import save_work

COMPRESS_ABOVE = 4_000_000  # rows of a generated part


def generate(folder: Path, **settings: Any) -> None:
    """Generate the data set with all cores. Large parts are compressed."""
    dataset.generate(folder, **settings, compress_above=COMPRESS_ABOVE, jobs=usable_cores())


class RecSys2021(DatasetTask[Params]):
    """See configs/tasks/recsys2021.yaml for the parameters."""

    params_type = Params
    data_source = DataSource(f"recsys2021-v{generator.VERSION}", generate, dataset.check)

    def prepare(
        self,
        source: Path | None,
        cache: Path,
        scale: float,
        seed: int,
        progress: Progress,
        *,
        train_scale: float | None = None,
    ) -> Data:
        """Check the files in `source`, or generate files in `cache` unless they exist. Raises DataError for invalid files."""
        return self.prepared(source, cache, scale, seed, progress, train_scale)

    def check_together(self, params: Params) -> None:
        """Raise UsageError for an unknown model, a run without a model of the first stage, and unknown features."""
        ensemble.select_models(params)

    def notes(self, files: Files) -> list[str]:
        """Notes on the files, and on a missing truth."""
        return [*super().notes(files), *([] if "test_truth" in files.rows else ["no test_truth: no score"])]

    def fit_steps(self, context: Context) -> Steps:
        """Train both stages, the trees on the cluster if there is one."""
        if not context.clustered:
            return (yield from self._fit(context, frames.load(context.engine)))
        yield "load"
        with (
            distributed.open_client(context) as client,
            frames.loaded_on(context.engine, client, context.gpu_memory_bytes) as e,
        ):
            return (yield from self._fit(context, e))

    def _fit(self, context: Context, e: Engine) -> Steps:
        models = ensemble.select_models(context.params)
        texts = [features.TEXTS] if models.all_networks else []
        yield "load"
        train, val = fitting.read_parts(e, context, texts)
        yield "features"
        with progress.part(0.0, 1.0 if drawing(context) else fitting.CODES):
            codes = collected(e, features.fit_codes(e, train.columns))
            for part in progress.over([train, val], [train.height, val.height]):
                fitting.code(part, codes)
        details: dict[str, Any] = {"rows": {"train": train.height, "val": val.height}}
        notes: tuple[str, ...] = ()
        summed_rows = train.height
        if drawing(context):
            sample = fitting.sampled(context.params.second_rows, val.height)
            occurring = Occurring(e, [train.columns, partial(val.columns, keep=sample)], train.height)
            fitted, facts = yield from drawn_tables.fit_tables(e, context, models, codes, occurring)
            details["drawn"], notes = facts, drawn_tables.notes(context)
            summed_rows = facts["rows"]
        else:
            with progress.part(fitting.CODES, fitting.TABLES):
                fitted = fitting.fit_tables(e, context, models, train, codes)
        details |= yield from fitting.first_stage(e, context, models, train, fitted)
        train.unlink()
        details |= yield from fitting.second_stage(e, context, models, val, fitted)
        val.unlink()
        save_work(context.work, work.count(context, models, summed_rows))
        columns = feature_set(context.params)
        if columns.decoded:
            details["vocabulary"] = vocabulary.describe(columns.vocabulary)
            vocabulary.save(context.work / fitting.VOCABULARY, columns.vocabulary)
        details |= (
            {"columns": len(columns.names())}
            | sizes.details(context)
            | weights_detail(context.params.weights)
        )
        return Result({}, train.height, details, notes=(*notes, *weights_notes(context.params.weights)))

    def predict_steps(self, context: Context) -> Steps:
        """Predict the test rows, on the cluster if there is one."""
        result = yield from self._predict(context)
        notes = drawn_tables.notes(context) if drawing(context) else ()
        return replace(result, notes=(*notes, *result.notes))

    def _predict(self, context: Context) -> Steps:
        if context.clustered:
            return (yield from distributed.predict(context))
        yield "load"
        predictor = Predictor(context)
        counted = yield from predictor.first_pass()
        yield "load"
        predictor.load_tables(counted)
        with submission(context, predictor.models) as writer:
            for piece in predictor.joined():
                predicted = yield from predictor.predicted(piece)
                yield "write"
                writer.add(predicted)
                piece.forget()
        predictor.close()
        details = {
            "pieces": len(predictor.pieces),
            "joined_rows": predictor.joined_rows,
            "table_rows": predictor.table_rows,
        }
        del predictor  # frees its memory for scoring
        yield "score"
        return writer.result(details | sizes.details(context))


def drawing(context: Context) -> bool:
    """Whether the lookup tables are drawn."""
    return context.params.tables == "drawn"


TASK = RecSys2021()
