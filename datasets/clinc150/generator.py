"""Synthetic sentences in the format of CLINC150, from templates for intents `<action>_<thing>`."""

import json
from pathlib import Path

import numpy as np

from buzzer.datasets.clinc150.reader import FILE, OFFICIAL_ROWS, OOS
from buzzer.datasets.contract import Progress
from buzzer.datasets.files import new_folder

VERSION = 1  # version of the random process: the same version, scale and seed give the same file

# Words for each action and thing. The last word is vague and shared with others, so that no model can be perfect.
ACTIONS = {
    "find": ("find", "look up", "search for", "show me", "get"),
    "change": ("change", "update", "modify", "edit", "fix"),
    "cancel": ("cancel", "call off", "get rid of", "stop", "fix"),
    "book": ("book", "reserve", "arrange", "order", "get"),
    "explain": ("explain", "tell me about", "describe", "what is", "show me"),
}
THINGS = {
    "flight": ("flight", "plane ticket", "trip by air", "journey"),
    "hotel": ("hotel room", "hotel", "place to sleep", "stay"),
    "car": ("rental car", "car", "vehicle to rent", "ride"),
    "taxi": ("taxi", "cab", "uber", "ride"),
    "train": ("train ticket", "train", "rail trip", "journey"),
    "restaurant": ("table at a restaurant", "dinner place", "restaurant", "meal"),
    "recipe": ("recipe", "cooking instructions", "dish to cook", "meal"),
    "account": ("bank account", "checking account", "savings account", "account"),
    "password": ("password", "pin code", "login code", "account"),
    "card": ("credit card", "debit card", "visa card", "card"),
    "transfer": ("money transfer", "wire transfer", "payment to a friend", "payment"),
    "bill": ("electricity bill", "water bill", "phone bill", "payment"),
    "insurance": ("insurance plan", "health insurance", "coverage", "plan"),
    "phone": ("phone plan", "mobile contract", "phone number", "plan"),
    "tax": ("tax return", "income tax", "tax form", "form"),
    "visa": ("travel visa", "visa application", "passport", "form"),
    "weather": ("weather forecast", "temperature", "chance of rain", "forecast"),
    "market": ("stock price", "share price", "market index", "forecast"),
    "meeting": ("meeting", "appointment with my boss", "conference call", "appointment"),
    "doctor": ("doctor's visit", "dentist", "checkup", "appointment"),
    "reminder": ("reminder", "alert", "note to myself", "note"),
    "list": ("shopping list", "to do list", "grocery list", "note"),
    "alarm": ("alarm", "wake up call", "morning alarm", "timer"),
    "timer": ("countdown", "kitchen timer", "stopwatch", "timer"),
    "music": ("song", "playlist", "music", "something to listen to"),
    "podcast": ("podcast", "radio show", "audio book", "something to listen to"),
    "movie": ("movie", "film", "cinema ticket", "something to watch"),
    "series": ("tv series", "show on tv", "episode", "something to watch"),
    "vacation": ("vacation days", "time off", "holiday request", "leave"),
    "salary": ("salary", "paycheck", "income", "pay"),
}
FORMS = (
    "{a} my {t}",
    "can you {a} the {t}",
    "please {a} a {t} for me",
    "i need you to {a} my {t}",
    "could you help me {a} the {t} {w}",
    "{a} {t} {w}",
    "i would like to {a} a {t} {w}",
    "{w} i want to {a} the {t}",
)
TIMES = (
    "today",
    "tomorrow",
    "for next week",
    "right now",
    "as soon as possible",
    "this evening",
    "on friday",
)
OOS_FORMS = ("how deep is the {x}", "who invented the {x}", "why do people like the {x}", "is the {x} real")
OOS_THINGS = (
    "ocean",
    "moon",
    "dinosaur",
    "violin",
    "volcano",
    "pyramid",
    "comet",
    "glacier",
    "opera",
    "telescope",
)


def sentence(rng: np.random.Generator, action: str, thing: str) -> str:
    """A random sentence with the intent `<action>_<thing>`."""
    words = {"a": pick(rng, ACTIONS[action]), "t": pick(rng, THINGS[thing]), "w": pick(rng, TIMES)}
    return pick(rng, FORMS).format(**words)


def pick(rng: np.random.Generator, options: tuple[str, ...]) -> str:
    """One of the options, all equally likely."""
    return options[rng.integers(len(options))]


def generate(out: Path, scale: float, seed: int, progress: Progress) -> None:
    """Write data_full.json and generator.json into the new folder `out`.

    Scale 1 has 150 intents and the official sizes of the splits. The scale changes the number of sentences per intent, which is
    at least one. Raises DataError if the files cannot be written.
    """
    intents = [(action, thing) for action in ACTIONS for thing in THINGS]
    content: dict[str, list[list[str]]] = {}
    for number, (split, official) in enumerate(OFFICIAL_ROWS.items()):
        progress(number / len(OFFICIAL_ROWS), "generating sentences")
        rng = np.random.default_rng([seed, number])
        if split.startswith("oos"):
            rows = max(round(official * scale), 10)
            content[split] = [
                [pick(rng, OOS_FORMS).format(x=pick(rng, OOS_THINGS)), OOS] for _ in range(rows)
            ]
        else:
            each = max(round(official * scale / len(intents)), 1)
            content[split] = [[sentence(rng, a, t), f"{a}_{t}"] for a, t in intents for _ in range(each)]
    with new_folder(out) as partial:
        (partial / FILE).write_text(json.dumps(content), encoding="utf-8")
        facts = {"generator": "clinc150", "version": VERSION, "scale": scale, "seed": seed}
        (partial / "generator.json").write_text(json.dumps(facts) + "\n", encoding="utf-8")
