"""From an item to the rows of token ids that are scored.

A prompt shows some solved examples first ("shots"), then the item itself, and the model says how likely its
continuation is:

    example's context + delimiter + example's right continuation, and an empty line      (for each shot)
    item's context    + delimiter + one of its continuations                             (for each option)

Which examples an item gets depends on its place among the shuffled items and on nothing else: they are
drawn without itself by `random.Random(1234 + place)`. That, the layout and the cutting below are those of
nanochat's core_eval.py, which renders the format of mosaicml's llm-foundry, so that numbers can be compared.

Every row begins with <|endoftext|>, as documents do in training (or what a public model has in its place:
text/foreign.py). Of a row, only the continuation is scored.
Where it begins is found in the ids, as tokens need not end where the context's text does:

    multiple_choice     after the ids that all options begin with
    schema              the ids that all options end with
    language_modeling   after the ids of the prompt without continuation and without white space at its end

A row that is longer than the model's context loses ids at its beginning: first of all <|endoftext|>, then
examples. How many is counted.
"""

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import takewhile

from pilgrim.core.errors import DataError
from pilgrim.evals.items import Item, Kind
from pilgrim.text.foreign import Encoder

SHOTS_SEED = 1234


@dataclass(frozen=True)
class Row:
    """Ids of one option; `ids[start:]` is what is scored. `start` >= 1, as nothing predicts the first id."""

    ids: tuple[int, ...]
    start: int


@dataclass(frozen=True)
class Question:
    """An item ready to be scored: a row for each option."""

    rows: tuple[Row, ...]
    cut: int  # ids that the longest row lost, as the model's context is shorter


def examples(items: Sequence[Item], place: int, shots: int) -> list[Item]:
    """The solved examples that come before `items[place]`. Raises DataError if there are not enough."""
    if len(items) <= shots:
        raise DataError(f"{len(items)} items are too few for {shots} examples before each; give it more")
    others = [other for other in range(len(items)) if other != place]
    return [items[other] for other in random.Random(SHOTS_SEED + place).sample(others, shots)]


def render(item: Item, shots: Sequence[Item], delimiter: str) -> list[str]:
    """The whole text of each of the item's options."""
    solved = "".join(_joined(shot.options[shot.gold], delimiter) + "\n\n" for shot in shots)
    return [solved + _joined(option, delimiter) for option in item.options]


def _joined(option: tuple[str, str], delimiter: str) -> str:
    context, continuation = option
    return context + delimiter + continuation


def question(
    item: Item, shots: Sequence[Item], kind: Kind, delimiter: str, tokenizer: Encoder, context: int
) -> Question:
    """The item's rows of at most `context` ids."""
    texts = render(item, shots, delimiter)
    match kind:
        case "multiple_choice":
            ids = _encoded(texts, tokenizer)
            # A choice with which another one begins ("yes", "yes, it is") would have nothing left to score.
            start = min(common(ids), *(len(row) - 1 for row in ids))
            starts = [start] * len(ids)
        case "schema":
            ids = _encoded(texts, tokenizer)
            alike = common([row[::-1] for row in ids])
            starts = [len(row) - alike for row in ids]
        case "language_modeling":
            (_, continuation), text = item.options[0], texts[0]
            before = text.removesuffix(continuation).strip()
            ids = _encoded([text, before], tokenizer)
            starts, ids = [common(ids)], ids[:1]
    return Question(
        tuple(_row(row, start, context) for row, start in zip(ids, starts, strict=True)),
        cut=max(0, max(map(len, ids)) - context),
    )


def _encoded(texts: Sequence[str], tokenizer: Encoder) -> list[list[int]]:
    return [[tokenizer.eot_id, *ids] for ids in tokenizer.encode_batch(texts)]


def common(rows: Iterable[Sequence[int]]) -> int:
    """How many ids all rows begin with."""
    return sum(1 for _ in takewhile(lambda ids: len(set(ids)) == 1, zip(*rows, strict=False)))


def _row(ids: Sequence[int], start: int, context: int) -> Row:
    cut = max(0, len(ids) - context)
    return Row(tuple(ids[cut:]), max(1, start - cut))
