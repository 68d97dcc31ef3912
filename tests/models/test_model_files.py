"""Files of models are untrusted: whatever is in them ends in one message, or in a record. BUZZER_MODEL_FILES sets how many are damaged."""

import copy
import json
import os
import random
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from buzzer.engine.infer import Plan
from buzzer.engine.infer.onnx.export import export
from buzzer.models.bert import encoder, families

HERE, ROOT = Path(__file__).parent, Path(__file__).parents[2]
COUNT = int(os.environ.get("BUZZER_MODEL_FILES", "30"))  # 350 for a thorough run
CONFIG = encoder.BertConfig(60, 16, 2, 2, 32, 40)
KEYS: dict[str, Any] = {name: getattr(CONFIG, name) for name in encoder.BertConfig.__dataclass_fields__}
ODD: list[Any] = [None, True, "128", -1, 0, 1 << 40, 1.5, [], {}, "x" * 300, [[[]]], 1e400, "\ud800"]


def bytes_of(data: bytes, rng: random.Random) -> bytes:
    """Cut, with flipped bits, with a piece twice, or with noise in it."""
    at = rng.randrange(len(data)) if rng.random() < 0.5 else rng.randrange(min(len(data), 400))
    match rng.randrange(4):
        case 0:
            return data[:at]
        case 1:
            flipped = bytearray(data)
            for _ in range(rng.choice([1, 1, 8])):
                flipped[(at + rng.randrange(64)) % len(data)] ^= 1 << rng.randrange(8)
            return bytes(flipped)
        case 2:
            return data[:at] + data[max(at - 40, 0) :]
    return data[:at] + rng.randbytes(rng.randrange(1, 20)) + data[at + 10 :]


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every member of a JSON document: its holder and its key."""
    for key, inner in list(value.items() if isinstance(value, dict) else enumerate(value)):
        yield value, key
        if isinstance(inner, dict | list):
            yield from places(inner)


def json_of(text: str, rng: random.Random) -> str:
    """A document with one member of another type, or without it."""
    document = copy.deepcopy(json.loads(text))
    holder, key = rng.choice([*places(document)][:200])
    if rng.random() < 0.3:
        del holder[key]
    else:
        holder[key] = rng.choice(ODD)
    return json.dumps(document)


def header_of(data: bytes, rng: random.Random) -> bytes:
    """safetensors with another header: 8 bytes of its length, JSON, then the values."""
    length = int.from_bytes(data[:8], "little")
    header = json_of(data[8 : 8 + length].decode(), rng).encode()
    return len(header).to_bytes(8, "little") + header + data[8 + length :]


def graph_of(data: bytes, rng: random.Random) -> bytes:
    """An ONNX model that can be read, with another size, type, name, operator or attribute."""
    import onnx

    model = onnx.load_from_string(data)
    graph = model.graph
    node, weight, entry = rng.choice(graph.node), rng.choice(graph.initializer), rng.choice(graph.input)
    match rng.randrange(9):
        case 0:
            entry.type.tensor_type.shape.dim[rng.randrange(2)].dim_value = rng.choice(
                [1, 7, 1 << 20, 1 << 40]
            )
        case 1:
            entry.type.tensor_type.elem_type = rng.randrange(25)
        case 2:
            weight.dims[0] = rng.choice([0, 1, 3, 1 << 40, -5])
        case 3:
            weight.data_type = rng.randrange(25)
        case 4:
            node.op_type = rng.choice(["MatMul", "Gather", "LSTM", "Loop", "If", "Nonsense", "Conv", ""])
        case 5:
            del node.input[:1]
        case 6:
            node.attribute.append(onnx.helper.make_attribute("axis", rng.choice([-9, 3, 1 << 40])))
        case 7:
            del node.output[:]
        case 8:
            weight.raw_data = weight.raw_data[: rng.randrange(1 + len(weight.raw_data))]
    return bytes(model.SerializeToString())


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ONNX file, a BERT folder and boosted trees in both forms."""
    import tokenizers
    import xgboost
    from safetensors.torch import save_file

    home = tmp_path_factory.mktemp("sound")
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Embedding(20, 6), torch.nn.Flatten(), torch.nn.Linear(24, 3)).eval()
    plan = Plan(
        net, {"ids": np.zeros((2, 4), dtype="int64")}, ("y",), {"ids": {0: "batch"}}, "fp32", "cpu", 1
    )
    (home / "onnx").write_bytes(export(plan))
    bert = home / "bert"
    bert.mkdir()
    (bert / "config.json").write_text(json.dumps(KEYS | {"model_type": "bert"}))
    save_file(hugging_face(encoder.random(CONFIG, 0)), bert / "model.safetensors")
    words = ["[UNK]", "[CLS]", "[SEP]", "what", "is", "my", "balance", "play", "some", "music"]
    made = tokenizers.Tokenizer(
        tokenizers.models.WordPiece({w: i for i, w in enumerate(words)}, unk_token="[UNK]")
    )
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.post_processor = tokenizers.processors.BertProcessing(("[SEP]", 2), ("[CLS]", 1))
    made.save(str(bert / "tokenizer.json"))
    x = np.random.default_rng(0).normal(size=(50, 3))
    data = xgboost.DMatrix(x, label=x[:, 0] > 0)
    booster = xgboost.train({"objective": "binary:logistic", "max_depth": 2}, data, 3)
    for kind in ("json", "ubj"):
        booster.save_model(home / f"trees.{kind}")
    return home


def hugging_face(bert: encoder.Bert) -> dict[str, torch.Tensor]:
    """The weights under the names that Hugging Face gives them."""
    back = {ours: theirs for theirs, ours in families.PARTS.items()}
    found = {}
    for name, weight in bert.state_dict().items():
        part, _, kind = name.rpartition(".")
        if part.startswith("layers."):
            _, number, rest = part.split(".")
            found[f"bert.encoder.layer.{number}.{back[rest]}.{kind}"] = weight
        else:
            theirs = next(a for a, b in families.EMBEDDINGS.items() if b == part)
            found[f"bert.embeddings.{theirs}.{kind}"] = weight
    return found


def damage(sound: Path, out: Path, count: int) -> None:
    """`count` files and folders, each damaged in one place; every kind in turn."""
    ways: list[tuple[str, str, Callable[[Any, random.Random], Any], bool]] = [
        ("onnx", "", bytes_of, False),
        ("onnx", "", graph_of, False),
        ("bert", "config.json", json_of, True),
        ("bert", "tokenizer.json", json_of, True),
        ("bert", "model.safetensors", header_of, False),
        ("trees.json", "", json_of, True),
        ("trees.ubj", "", bytes_of, False),
        ("onnx", "", graph_of, False),
        ("bert", "tokenizer.json", bytes_of, False),
        ("bert", "model.safetensors", bytes_of, False),
        ("bert", "config.json", bytes_of, False),
        ("trees.json", "", bytes_of, False),
    ]
    for number in range(count):
        name, inner, change, text = ways[number % len(ways)]
        rng = random.Random(number)
        place = out / f"{number:03}-{name}{'.onnx' if name == 'onnx' else ''}"
        if inner:
            shutil.copytree(sound / name, place)
        file, source = place / inner if inner else place, sound / name / inner if inner else sound / name
        new = change(source.read_text() if text else source.read_bytes(), rng)
        file.write_text(new, errors="surrogatepass") if text else file.write_bytes(new)


def outcomes(folder: Path, path: str = str(ROOT)) -> dict[str, tuple[str, str]]:
    """Kind and message of what came of each file; `signal` for one that ended its process."""
    command = [sys.executable, str(HERE / "model_files.py"), str(folder)]
    environment = os.environ | {"PYTHONPATH": path}
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    lines = (json.loads(line) for line in done.stdout.splitlines() if line.startswith('["'))
    return {file: (kind, message) for file, kind, message in lines}


def test_damaged_files_end_in_one_message_and_sound_ones_load(sound: Path, tmp_path: Path) -> None:
    damage(sound, tmp_path, COUNT)
    good = {"x-onnx.onnx": "onnx", "x-bert": "bert", "x-trees.json": "trees.json", "x-trees.ubj": "trees.ubj"}
    for name, source in good.items():
        (shutil.copytree if source == "bert" else shutil.copy)(sound / source, tmp_path / name)
    found = outcomes(tmp_path)
    assert [found.pop(name) for name in good] == [("loaded", "")] * len(good)
    assert len(found) == COUNT
    counted = Counter((name.split("-")[1].partition(".")[0], told[0]) for name, told in found.items())
    print(*sorted(counted.items()), sep="\n")
    assert not {name: told for name, told in found.items() if told[0].startswith("unhandled")}
    assert sum(told[0] == "signal" for told in found.values()) <= COUNT // 20
    messages = [told[1] for told in found.values() if told[0].endswith("Error")]
    assert len(messages) > COUNT // 2
    assert all(len(told) < 600 and "\n" not in told for told in messages)
