"""The `bert-intent-precision` task: as `bert-intent`, with an encoder that is fine-tuned end to end, then quantised and pruned.

One fit makes all checkpoints. A prediction runs one checkpoint on one backend.

`fit` writes to the work folder:
- <checkpoint>/: a folder of `quant.save` for each checkpoint;
- classes.json: the names of the classes.
While `fit` runs there is also <checkpoint>.tuning.pt, from which an interrupted fit resumes.

Details of `fit`: `checkpoints`, name -> `valid_accuracy` and `bytes`; `layers`, the number of layers of the encoder; `tuned_in_bf16`.

Details of `predict`: the details of `bert-intent`, and `simulated`: whether the session computes in FP32 with values rounded to its
precision.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from buzzer.errors import UnsupportedError, UsageError, unknown_name
from buzzer.models.api import progress
from buzzer.models.api.context import Result, Steps
from buzzer.models.bert.intent import IntentTask, Ready
from buzzer.models.bert.params import PrecisionContext, PrecisionParams

# Precision in the record -> checkpoint, precision of the session.
VARIANTS = {
    "fp32": ("float", "fp32"),
    "bf16": ("float", "bf16"),
    "fp16": ("float", "fp16"),
    "int8-dynamic": ("float", "int8-dynamic"),
    "int8": ("int8", "int8"),
    "int8-qat": ("int8-qat", "int8"),
    "fp8": ("fp8", "fp8"),
    "sparse": ("sparse", "fp32"),
    "sparse-int8": ("sparse-int8", "int8"),
}
SIMULATED = "{} simulates {}: it rounds values and multiplies in FP32, so the accuracy is meaningful but not the speed"
SATURATES = "without VNNI {} adds pairs of INT8 products in 16 bits, which saturates: accuracy may be lower than on other processors"
DENSE = "no kernel uses the 2:4 pattern: the accuracy is that of the sparse model, the speed that of a dense model"


class BertIntentPrecision(IntentTask[PrecisionParams]):
    """See configs/tasks/bert-intent-precision.yaml for the parameters."""

    params_type = PrecisionParams

    def check_together(self, params: PrecisionParams) -> None:
        """Raise UsageError for an unknown checkpoint."""
        from buzzer.models.bert.checkpoints import order

        order(params.checkpoints)

    def fit_steps(self, context: PrecisionContext) -> Steps:
        """Fine-tune once, then make the checkpoints that the parameters name from the fine-tuned model."""
        from buzzer.models.bert.checkpoints import Maker, order, start

        yield "load"
        data, model, classes = yield from start(context)
        maker = Maker(context, data)
        yield "fit"
        for name in progress.over(order(context.params.checkpoints)):
            for _ in maker.make(name, model):
                yield "fit"
        yield "write"
        (context.work / "classes.json").write_text(json.dumps(classes))
        details = {
            "checkpoints": maker.details,
            "layers": len(model.bert.layers),
            "tuned_in_bf16": maker.bf16,
        }
        return Result(
            {"valid_accuracy": maker.details["float"]["valid_accuracy"]}, len(data.train.ids), details
        )

    def layers(self, params: Mapping[str, Any]) -> int:
        """The number of layers of the encoder that the parameters name, before it is truncated."""
        from buzzer.models.bert import encoder, weights

        return encoder.config_of(weights.folder(params["weights"])).num_hidden_layers

    def ready(self, context: PrecisionContext, folder: Path, classes: int) -> Ready:
        """The checkpoint of the run's precision.

        Raises UnsupportedError for a precision that the backend does not support, UsageError for an unknown precision and for a
        checkpoint that `fit` did not make.
        """
        from buzzer.engine import device, infer, quant
        from buzzer.models.bert.checkpoints import blank

        if context.precision not in VARIANTS:
            raise unknown_name("precision", context.precision, VARIANTS)
        name, precision = VARIANTS[context.precision]
        if precision not in (offered := infer.load(context.backend).PRECISIONS):
            raise UnsupportedError(
                f"{context.backend} has no precision {precision}", f"it has: {', '.join(offered)}"
            )
        if name not in context.params.checkpoints:
            raise UsageError(
                f"the fit made no checkpoint {name}", f"add it: --set checkpoints=[float,{name}]"
            )
        notes = [DENSE] if name.startswith("sparse") else []
        simulated = infer.simulates(context.backend, precision)
        if simulated:
            notes.append(SIMULATED.format(context.backend, precision.upper()))
        elif precision.startswith("int8") and device.saturates():
            notes.append(SATURATES.format(context.backend))
        model = quant.load(context.work / name, blank(context, folder, classes))
        return Ready(model, precision, tuple(notes), {"simulated": simulated})


TASK = BertIntentPrecision()
