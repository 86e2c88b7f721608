"""Makes the booking example's data: what callers say, and the tool call that each of them should lead to.

    python examples/booking/generate.py            # writes the three .jsonl files beside it
    python examples/booking/generate.py --output DIR --seed 10

The same seed gives the same bytes on every machine. Wordings are in `wordings.toml`, tools in `tools.json`; training and
warm start use the training wordings, the held-out rows their own, and no caller's text stands twice in the three files.

A row's difficulty is that of the hardest thing in it: the form of a value ("19:30", "7pm", "half past seven in the
evening") or the kind of its wording (plain, distractor, correction). What is easy can be copied; what is middle is
reformatted or picked out; what is hard needs a calendar, a sum, or a correction to be followed.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import re
import string
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date, timedelta
from enum import IntEnum
from pathlib import Path

HERE = Path(__file__).parent
WORDINGS = tomllib.loads((HERE / "wordings.toml").read_text(encoding="utf-8"))

SEED = 9
TRAIN_ROWS, HELD_OUT_ROWS, WARM_START_ROWS = 2000, 200, 100
MAX_SPOKEN_LENGTH = 30  # keeps the longest prompt at 115 tokens of SmolLM2's, system message included

CODE_LETTERS = "BCDFGHJKLMNPRT"
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
DIGITS = ("oh", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS = (
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
)
COMPANY = (
    ("my husband and me", 2),
    ("my wife and me", 2),
    ("me and two colleagues", 3),
    ("my parents and me", 3),
    ("me and three friends", 4),
    ("my wife, two kids and me", 4),
    ("me and four colleagues", 5),
    ("me and five friends", 6),
)
# Reference dates are such that every date asked for lies in the same year, so the year never has to be worked out.
FIRST_TODAY, LAST_TODAY, FARTHEST_DAY = date(2026, 1, 5), date(2026, 11, 30), 25
OPENING_HOURS = {"clinic": (8, 16)}  # first and last hour in which a visit may start
USUAL_OPENING_HOURS = (12, 21)


class Difficulty(IntEnum):
    EASY = 0
    MIDDLE = 1
    HARD = 2


# Two easy, two middle, one hard: a small model earns something on most prompts and nowhere everything.
DIFFICULTIES = (Difficulty.EASY, Difficulty.MIDDLE, Difficulty.HARD, Difficulty.EASY, Difficulty.MIDDLE)
KINDS = {"plain": Difficulty.EASY, "distractor": Difficulty.MIDDLE, "correction": Difficulty.HARD}


@dataclass(frozen=True)
class Phrase:
    """A value as a caller says it, and as the call must hold it."""

    text: str
    value: str | int
    difficulty: Difficulty


@dataclass(frozen=True)
class Scene:
    """What a call's values depend on. `hardest` bounds the difficulty of what is said."""

    rng: random.Random
    tool: str
    today: date
    hardest: Difficulty


@dataclass(frozen=True)
class Wording:
    """One line of `wordings.toml`; `slots` are those in its text."""

    id: str
    text: str
    slots: tuple[str, ...]
    difficulty: Difficulty


@dataclass(frozen=True)
class Row:
    """One caller, with the reference date before what is said, and the gold call."""

    prompt: str
    tool: str
    arguments: dict[str, str | int]
    difficulty: Difficulty
    wording: str

    def as_prompt(self) -> dict[str, object]:
        return {
            "prompt": self.prompt,
            "answer": [{"name": self.tool, "arguments": self.arguments}],
            "difficulty": self.difficulty.name.lower(),
            "template": self.wording,
        }

    def as_demonstration(self) -> dict[str, object]:
        call = {"name": self.tool, "arguments": self.arguments}
        return {"prompt": self.prompt, "completion": json.dumps(call, separators=(",", ":"))}


def ordinal(number: int) -> str:
    """
    >>> [ordinal(number) for number in (1, 2, 3, 4, 11, 12, 13, 21, 22)]
    ['1st', '2nd', '3rd', '4th', '11th', '12th', '13th', '21st', '22nd']
    """
    suffix = "th" if 11 <= number <= 13 else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{suffix}"


def said_time(hour: int, minute: int) -> str:
    """The time in words, for the quarters of an hour.

    >>> said_time(19, 30), said_time(12, 45), said_time(9, 0)
    ('half past seven in the evening', 'quarter to one in the afternoon', 'nine in the morning')
    """
    part = "morning" if hour < 12 else "afternoon" if hour < 18 else "evening"
    named = hour + 1 if minute == 45 else hour
    before = {0: "", 15: "quarter past ", 30: "half past ", 45: "quarter to "}[minute]
    return f"{before}{NUMBERS[(named - 1) % 12 + 1]} in the {part}"


def said_digits(digits: str) -> str:
    """
    >>> said_digits("407")
    'four oh seven'
    """
    return " ".join(DIGITS[int(digit)] for digit in digits)


def spoken_length(text: str) -> int:
    """Words, digits and marks: about what a tokenizer makes of the text.

    >>> spoken_length("At 7:30pm.")
    7
    """
    return len(re.findall(r"[A-Za-z']+|\S", text))


def draw_date(scene: Scene) -> Phrase:
    """A day from today to `FARTHEST_DAY` days ahead, with its preposition."""
    form = scene.rng.choice(("today", "iso", "iso", "tomorrow", "month", "month", "nth", "nth", "weekday", "in days"))
    ahead = scene.rng.randint(2, FARTHEST_DAY)
    soon = scene.rng.randint(2, 6)
    day = scene.today + timedelta(days={"today": 0, "tomorrow": 1, "weekday": soon, "in days": soon}.get(form, ahead))
    match form:
        case "today":
            text, difficulty = form, Difficulty.EASY
        case "tomorrow":
            text, difficulty = form, Difficulty.MIDDLE
        case "iso":
            text, difficulty = f"on {day.isoformat()}", Difficulty.EASY
        case "month":
            text, difficulty = f"on {MONTHS[day.month - 1]} {ordinal(day.day)}", Difficulty.MIDDLE
        case "nth":
            text = f"on the {ordinal(day.day)}"
            difficulty = Difficulty.MIDDLE if day.month == scene.today.month else Difficulty.HARD
        case "weekday":
            text, difficulty = f"this {WEEKDAYS[day.weekday()]}", Difficulty.HARD
        case _:
            text, difficulty = f"in {NUMBERS[soon]} days", Difficulty.HARD
    return Phrase(text, day.isoformat(), difficulty)


def draw_time(scene: Scene) -> Phrase:
    """A quarter of an hour in the opening hours, with its preposition."""
    hour = scene.rng.randint(*OPENING_HOURS.get(scene.tool, USUAL_OPENING_HOURS))
    minute = scene.rng.choice((0, 0, 0, 30, 30, 15, 45))
    half_day = "am" if hour < 12 else "pm"
    spoken_hour = (hour - 1) % 12 + 1
    match scene.rng.choice(("figures", "half day", "words")):
        case "figures":
            text, difficulty = f"{hour:02}:{minute:02}", Difficulty.EASY
        case "half day":
            minutes = f":{minute:02}" if minute else ""
            text, difficulty = f"{spoken_hour}{minutes}{half_day}", Difficulty.MIDDLE
        case _:
            text, difficulty = said_time(hour, minute), Difficulty.HARD
    return Phrase(f"at {text}", f"{hour:02}:{minute:02}", difficulty)


def draw_count(scene: Scene) -> Phrase:
    number = scene.rng.randint(2, 12)
    if scene.rng.random() < 0.5:
        return Phrase(str(number), number, Difficulty.EASY)
    return Phrase(NUMBERS[number], number, Difficulty.MIDDLE)


def draw_party(scene: Scene) -> Phrase:
    if scene.rng.random() < 0.7:
        return draw_count(scene)
    text, number = scene.rng.choice(COMPANY)
    return Phrase(text, number, Difficulty.HARD)


def draw_name(scene: Scene) -> Phrase:
    name = scene.rng.choice(WORDINGS["values"]["names"])
    return Phrase(name, name, Difficulty.EASY)


def draw_insurance(scene: Scene) -> Phrase:
    insurer = scene.rng.choice([*WORDINGS["values"]["insurers"], None])
    if insurer is None:
        return Phrase("no insurance", "none", Difficulty.MIDDLE)
    return Phrase(f"{insurer} insurance", insurer, Difficulty.EASY)


def draw_address(scene: Scene) -> Phrase:
    street = f"{scene.rng.choice(WORDINGS['values']['streets'])} {scene.rng.choice(WORDINGS['values']['street_kinds'])}"
    number = scene.rng.randint(2, 199)
    address = f"{number} {street}"
    if scene.rng.random() < 0.7:
        return Phrase(address, address, Difficulty.EASY)
    return Phrase(f"{street}, number {number}", address, Difficulty.MIDDLE)


def draw_digits(scene: Scene, prefix: str, digits: int, separator: str) -> Phrase:
    """A prefix and digits: written as the call wants them, with a space between the two, or the digits in words."""
    number = "".join(str(scene.rng.randint(0, 9)) for _ in range(digits))
    value = f"{prefix}{separator}{number}"
    match scene.rng.choice(tuple(Difficulty)):
        case Difficulty.EASY:
            return Phrase(value, value, Difficulty.EASY)
        case Difficulty.MIDDLE:
            return Phrase(f"{prefix} {number}", value, Difficulty.MIDDLE)
        case _:
            return Phrase(f"{prefix} {said_digits(number)}", value, Difficulty.HARD)


def draw_code(scene: Scene) -> Phrase:
    return draw_digits(scene, scene.rng.choice(CODE_LETTERS), digits=3, separator="")


def draw_phone(scene: Scene) -> Phrase:
    return draw_digits(scene, "555", digits=4, separator="-")


SLOTS: dict[str, Callable[[Scene], Phrase]] = {
    "date": draw_date,
    "time": draw_time,
    "party": draw_party,
    "count": draw_count,
    "name": draw_name,
    "insurance": draw_insurance,
    "address": draw_address,
    "code": draw_code,
    "phone": draw_phone,
}


def draw_phrase(scene: Scene, slot: str, unlike: str | int | None = None) -> Phrase:
    """A phrase for the slot, no harder than the scene allows, whose value is not `unlike`."""
    while True:
        phrase = SLOTS[slot](scene)
        if phrase.difficulty <= scene.hardest and phrase.value != unlike:
            return phrase


def draw_row(scene: Scene, wording: Wording, arguments: list[str]) -> Row:
    """The wording with its slots filled, and the call with its arguments in the order of `arguments`."""
    phrases: dict[str, Phrase] = {}
    values: dict[str, str | int] = {}
    for slot in wording.slots:
        if not slot.startswith("not_"):
            phrases[slot] = draw_phrase(scene, slot)
            values[argument_of(slot)] = phrases[slot].value
    difficulty = max([wording.difficulty, *(phrase.difficulty for phrase in phrases.values())])
    for slot in wording.slots:
        if slot not in phrases:
            phrases[slot] = draw_phrase(scene, slot.removeprefix("not_"), unlike=values.get(argument_of(slot)))
    said = wording.text.format_map({slot: phrase.text for slot, phrase in phrases.items()})
    return Row(
        prompt=f"{WEEKDAYS[scene.today.weekday()][:3]} {scene.today.isoformat()}: {said[0].upper()}{said[1:]}",
        tool=scene.tool,
        arguments={argument: values[argument] for argument in arguments},
        difficulty=difficulty,
        wording=wording.id,
    )


def argument_of(slot: str) -> str:
    """The argument that a slot's value belongs to.

    >>> argument_of("not_count"), argument_of("date")
    ('party', 'date')
    """
    kind = slot.removeprefix("not_")
    return "party" if kind == "count" else kind


def read_wordings(split: str) -> dict[str, list[Wording]]:
    """The wordings of a split ("train", "held_out") by tool."""
    return {
        tool: [
            Wording(f"{split}-{tool}-{kind}-{number}", text, slots_of(text), KINDS[kind])
            for kind, texts in kinds.items()
            for number, text in enumerate(texts)
        ]
        for tool, kinds in WORDINGS[split].items()
    }


def slots_of(text: str) -> tuple[str, ...]:
    return tuple(slot for _, slot, _, _ in string.Formatter().parse(text) if slot)


def read_arguments() -> dict[str, list[str]]:
    """The arguments of each tool in `tools.json`, in the schema's order."""
    tools = json.loads((HERE / "tools.json").read_text(encoding="utf-8"))
    return {tool["function"]["name"]: list(tool["function"]["parameters"]["properties"]) for tool in tools}


def draw_rows(seed: str, split: str, said: set[str]) -> Iterator[Row]:
    """Rows without end: tools in turn, difficulties by `DIFFICULTIES`, no text that is in `said`, which grows."""
    rng = random.Random(seed)
    arguments, wordings = read_arguments(), read_wordings(split)
    tools = list(arguments)
    days = (LAST_TODAY - FIRST_TODAY).days
    for number in itertools.count():
        place, turn = number % len(tools), number // len(tools)
        tool, difficulty = tools[place], DIFFICULTIES[(place + turn) % len(DIFFICULTIES)]
        while True:
            scene = Scene(rng, tool, FIRST_TODAY + timedelta(days=rng.randint(0, days)), difficulty)
            kind = rng.choice([kind for kind in KINDS.values() if kind <= difficulty])
            wording = rng.choice([wording for wording in wordings[tool] if wording.difficulty == kind])
            row = draw_row(scene, wording, arguments[tool])
            text = row.prompt.partition(": ")[2]
            if row.difficulty == difficulty and spoken_length(text) <= MAX_SPOKEN_LENGTH and text not in said:
                break
        said.add(text)
        yield row


def write_jsonl(path: Path, rows: list[dict[str, object]]) -> None:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8", newline="\n")


def generate(output: Path, seed: int) -> None:
    """Writes `train.jsonl`, `held_out.jsonl` and `warm_start.jsonl` into the folder `output`."""
    said: set[str] = set()
    held_out = itertools.islice(draw_rows(f"{seed}-held-out", "held_out", said), HELD_OUT_ROWS)
    write_jsonl(output / "held_out.jsonl", [row.as_prompt() for row in held_out])
    warm_start = itertools.islice(draw_rows(f"{seed}-warm-start", "train", said), WARM_START_ROWS)
    write_jsonl(output / "warm_start.jsonl", [row.as_demonstration() for row in warm_start])
    train = itertools.islice(draw_rows(f"{seed}-train", "train", said), TRAIN_ROWS)
    write_jsonl(output / "train.jsonl", [row.as_prompt() for row in train])


def main() -> None:
    parser = argparse.ArgumentParser(description="Makes the booking example's data.")
    parser.add_argument("--output", type=Path, default=HERE, help="folder for the three files (default: this one)")
    parser.add_argument("--seed", type=int, default=SEED)
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    generate(options.output, options.seed)


if __name__ == "__main__":
    main()
