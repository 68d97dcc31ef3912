"""Eight-bit and 2:4 sparse models: calibration, quantisation, pruning, and checkpoints.

model = quant.quantise(model, batches, precision="int8", method="mse")
quant.save(model, folder)
session = infer.prepare(quant.load(folder, float_model), backend="onnxruntime", precision="int8", ...)
"""

from buzzer.engine.quant.calibrate import METHODS, quantise
from buzzer.engine.quant.checkpoint import load, save
from buzzer.engine.quant.layer import PRECISIONS, FrozenLinear, Packed, QuantLinear, freeze, precision_of
from buzzer.engine.quant.smooth import smooth
from buzzer.engine.quant.sparse import Sparsity, mask_2_4

__all__ = [
    "METHODS",
    "PRECISIONS",
    "FrozenLinear",
    "Packed",
    "QuantLinear",
    "Sparsity",
    "freeze",
    "load",
    "mask_2_4",
    "precision_of",
    "quantise",
    "save",
    "smooth",
]
