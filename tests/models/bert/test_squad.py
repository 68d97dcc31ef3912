"""Questions in SQuAD's format: windows, answers and scores; and `buzzer bench` of a model with a head for answers."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers

from buzzer.errors import DataError, UsageError
from buzzer.models.api.bench import BenchSpec
from buzzer.models.bert import squad
from buzzer.models.bert.bench import TARGET
from buzzer.models.bert.squad import Question

WORDS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "who",
    "won",
    "the",
    "cup",
    "in",
    "by",
    "far",
    "red",
    "team",
    "blue",
]
TEXT = "the blue team won by far . " * 8 + "in the cup the red team won by far"


def words_of() -> tokenizers.Tokenizer:
    """A tokenizer of whole words, with BERT's special tokens."""
    made = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="[UNK]")
    )
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.post_processor = tokenizers.processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return made


def file_of(path: Path, questions: list[tuple[str, str, list[str]]]) -> Path:
    paragraphs = [
        {
            "context": text,
            "qas": [
                {
                    "id": str(number),
                    "question": asked,
                    "answers": [{"text": answer, "answer_start": text.find(answer)} for answer in answers],
                }
            ],
        }
        for number, (asked, text, answers) in enumerate(questions)
    ]
    path.write_text(json.dumps({"version": "1.1", "data": [{"title": "x", "paragraphs": paragraphs}]}))
    return path


def logits_of(found: squad.Windows, answers: list[tuple[int, int]]) -> np.ndarray:
    """Logits of a model that knows the characters of each answer."""
    logits = np.zeros((*found.spans.shape[:2], 2))
    for window, owner in enumerate(found.owners):
        first, last = answers[owner]
        logits[window, :, 0] = 9.0 * (found.spans[window, :, 0] == first)
        logits[window, :, 1] = 9.0 * (found.spans[window, :, 1] == last)
    return logits


@pytest.mark.parametrize("length", [24, 40, 140, 384])
def test_a_model_that_knows_the_answer_scores_1_in_any_window(length: int) -> None:
    questions = [
        Question("who won the cup", TEXT, ("the red team",)),
        Question("who won", TEXT, ("blue team", "the blue team")),
    ]
    found = squad.windows(words_of(), questions, length)
    assert found.inputs["input_ids"].shape[1] == length
    assert (len(found.owners) > 2) == (length < 140)
    for owner in (0, 1):  # every word of the text is in a window
        places = found.spans[[owner == other for other in found.owners]].reshape(-1, 2)
        seen = {tuple(place) for place in places.tolist()}
        assert {(TEXT.rindex("red"), TEXT.rindex("red") + 3), (0, 3)} <= seen
    at = [TEXT.index(q.answers[0]) for q in questions]
    ends = [start + len(q.answers[0]) for start, q in zip(at, questions, strict=True)]
    logits = logits_of(found, list(zip(at, ends, strict=True)))
    assert squad.answers(found, logits) == [q.answers[0] for q in questions]
    assert squad.scores(questions, squad.answers(found, logits)) == {"exact_match": 1.0, "f1": 1.0}


def test_an_answer_is_in_the_text_in_order_and_not_too_long() -> None:
    found = squad.windows(words_of(), [Question("who won the cup", TEXT, ("x",))], 120)
    rng = np.random.default_rng(0)
    for _ in range(20):
        start, end = rng.normal(size=(2, 120))
        score, first, last = squad.best_answer(start, end, found.spans[0])
        assert TEXT[first:last]
        assert len(TEXT[first:last].split()) <= squad.LONGEST
        spans = found.spans[0]
        pairs = [
            (start[i] + end[j], spans[i, 0], spans[j, 1])
            for i in range(120)
            for j in range(i, min(i + squad.LONGEST, 120))
            if spans[i, 0] >= 0 and spans[j, 0] >= 0
        ]
        best = max(pairs)
        assert score <= best[0]
        if (np.sort(start[spans[:, 0] >= 0])[-20] <= best[0] - end.max()) and score == best[0]:
            assert (first, last) == best[1:]
    nothing = np.full((4, 2), -1)
    assert squad.best_answer(np.ones(4), np.ones(4), nothing) == (-np.inf, 0, 0)


@pytest.mark.parametrize(
    ("given", "right", "exact", "overlap"),
    [
        ("The Red Team!", ("red team",), 1.0, 1.0),
        ("red", ("the red team", "blue"), 0.0, 2 / 3),
        ("a red, red team", ("red team",), 0.0, 0.8),
        ("", ("red",), 0.0, 0.0),
        ("an", ("the",), 1.0, 0.0),
        ("308 points", ("308",), 0.0, 2 / 3),
    ],
)
def test_scores_are_those_of_the_official_script(
    given: str, right: tuple[str, ...], exact: float, overlap: float
) -> None:
    """Computed by hand from evaluate-v1.1.py; without common words its F1 is 0, also for two empty answers."""
    got = squad.scores([Question("q", "c", right)], [given])
    assert got == {"exact_match": exact, "f1": pytest.approx(overlap)}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not in SQuAD's format: the file"),
        ('{"data": 1}', "not in SQuAD's format: data"),
        ('{"data": []}', "no questions"),
        (
            '{"data": [{"paragraphs": [{"context": "x", "qas": [{"id": "1"}]}]}]}',
            r"paragraphs\.0\.qas\.0\.question",
        ),
        (
            '{"data": [{"paragraphs": [{"context": "x", "qas": [{"id": "1", "question": "q", "answers": []}]}]}]}',
            "without an answer",
        ),
    ],
)
def test_other_files_are_refused(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "q.json").write_text(content)
    with pytest.raises(DataError, match=message):
        squad.read(tmp_path / "q.json")


def published(path: Path, head: str, **more: Any) -> None:
    transformers = pytest.importorskip("transformers")
    shape = {"vocab_size": len(WORDS), "hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 3}
    config = transformers.BertConfig(**shape, intermediate_size=40, max_position_embeddings=64, **more)
    getattr(transformers, head)(config).save_pretrained(path)
    words_of().save(str(path / "tokenizer.json"))


def test_bench_scores_every_question(tmp_path: Path, bench_spec: Callable[..., BenchSpec]) -> None:
    """By a session that knows the answers, with three windows in batches of two."""
    published(tmp_path, "BertForQuestionAnswering")
    questions = [("who won the cup", "the red team won", ["red team"])] * 2 + [
        ("who won", "the blue team won", ["blue"])
    ]
    spec = BenchSpec(
        2,
        16,
        2,
        "fixed",
        "padded",
        0,
        {"weights": str(tmp_path)},
        file=file_of(tmp_path / "q.json", questions),
    )
    model = TARGET.load(spec)
    assert model.outputs == ("token_logits",)
    assert model.source == "official"
    assert model.facts["questions"] == model.facts["windows"] == 3
    assert set(model.batches[0]) == {"input_ids", "attention_mask", "token_type_ids"}
    assert model.evaluate is not None
    assert 0 <= model.evaluate(model.reference)["f1"] <= 1  # with random weights

    def knows(batch: Any) -> dict[str, np.ndarray]:
        logits = np.zeros((2, 16, 2))
        red = np.isin(batch["input_ids"], [WORDS.index("red"), WORDS.index("blue")])
        team = batch["input_ids"] == WORDS.index("team")
        logits[..., 0] = red
        logits[..., 1] = np.where((batch["input_ids"] == WORDS.index("red")).any(1, keepdims=True), team, red)
        return {"token_logits": logits}

    assert model.evaluate(knows) == {"exact_match": 1.0, "f1": 1.0}


@pytest.mark.parametrize("head", ["BertForTokenClassification", "BertForSequenceClassification", "BertModel"])
def test_other_heads_answer_no_questions(head: str, tmp_path: Path) -> None:
    published(tmp_path, head, num_labels=3)
    file = file_of(tmp_path / "q.json", [("who", "the red team", ["red"])])
    with pytest.raises(UsageError, match="the model has no head for answers"):
        TARGET.load(BenchSpec(1, 16, 2, "fixed", "padded", 0, {"weights": str(tmp_path)}, file=file))


def test_questions_must_leave_room_for_the_text() -> None:
    with pytest.raises(UsageError, match="--seq 6: questions have up to 7 tokens"):
        squad.windows(words_of(), [Question("who won the cup", TEXT, ("x",))], 6)


@pytest.mark.skipif("BUZZER_DATA" not in os.environ, reason="needs the real file in $BUZZER_DATA")
def test_every_answer_of_xquad_can_be_given() -> None:
    """The right answers score 1, and no answer scores 0."""
    questions = squad.read(Path(os.environ["BUZZER_DATA"]) / "text" / "xquad" / "xquad.en.json")
    assert len(questions) == 1190
    assert squad.scores(questions, [q.answers[0] for q in questions]) == {"exact_match": 1.0, "f1": 1.0}
    assert squad.scores(questions, [""] * 1190)["exact_match"] == 0.0
