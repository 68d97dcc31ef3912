"""The `bert-intent-precision` task: the intents of `bert-intent` by an encoder that is fine-tuned end to end, and then
quantised and pruned: one fit makes every checkpoint, one predict runs one of them on one backend."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from buzzer.errors import UnsupportedError, UsageError, unknown_name
from buzzer.models.api.context import Result, RunContext, Steps
from buzzer.models.bert.intent import BertIntent

# Name in the record -> checkpoint that `fit` made, precision of the session.
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
SIMULATED = "{} rounds to {} and multiplies in FP32 here: the accuracy is that precision's, the speed is not"
CUT_OFF = "without VNNI {} adds pairs of INT8 products in 16 bits and cuts large ones off: accuracy may be below other processors'"
DENSE = "no kernel here makes use of the 2:4 pattern: its accuracy is shown, at the speed of a dense model"


class BertIntentPrecision(BertIntent):
    """See configs/tasks/bert-intent-precision.yaml for the parameters."""

    def fit(self, job: RunContext) -> Steps:
        """Fine-tune once, then make the checkpoints that `params["checkpoints"]` names from it."""
        from buzzer.models.bert.checkpoints import Maker, order, start

        yield "load"
        data, model, classes = yield from start(job)
        maker = Maker(job, data)
        yield "fit"
        for name in order(job.params["checkpoints"]):
            for _ in maker.make(name, model):
                yield "fit"
        yield "write"
        (job.work / "classes.json").write_text(json.dumps(classes))
        facts = {"checkpoints": maker.told, "layers": len(model.bert.layers), "tuned_in_bf16": maker.bf16}
        return Result({"valid_accuracy": maker.told["float"]["valid_accuracy"]}, len(data.train.ids), facts)

    def layers(self, params: Mapping[str, Any]) -> int:
        """Layers of the encoder that the parameters name, before it is cut."""
        from buzzer.models.bert import encoder, weights

        return encoder.config_of(weights.folder(params["weights"])).num_hidden_layers

    def ready(
        self, job: RunContext, folder: Path, classes: int
    ) -> tuple[Any, str, tuple[str, ...], dict[str, Any]]:
        """The checkpoint of the job's precision, the session's precision, what a reader must know, and whether its speed is simulated."""
        from buzzer.engine import device, infer, quant
        from buzzer.models.bert.checkpoints import blank

        if job.precision not in VARIANTS:
            raise unknown_name("precision", job.precision, VARIANTS)
        name, precision = VARIANTS[job.precision]
        if precision not in (offered := infer.load(job.backend).PRECISIONS):
            raise UnsupportedError(
                f"{job.backend} has no precision {precision}", f"it has: {', '.join(offered)}"
            )
        if name not in job.params["checkpoints"]:
            raise UsageError(f"no checkpoint {name} was fitted", f"add it: --set checkpoints=[float,{name}]")
        notes = [DENSE] if name.startswith("sparse") else []
        simulated = infer.simulates(job.backend, precision)
        if simulated:
            notes.append(SIMULATED.format(job.backend, precision.upper()))
        elif precision.startswith("int8") and device.saturates():
            notes.append(CUT_OFF.format(job.backend))
        model = quant.load(job.work / name, blank(job, folder, classes))
        return model, precision, tuple(notes), {"simulated": simulated}


TASK = BertIntentPrecision()
