"""The items that a model found easiest and hardest: a few of each, with their text, to be read.

A number says how often a model is right; reading says why. An item's *margin* is how much likelier (in nats a
token) the right option was than the best other one: far below 0, the model was sure of something wrong. Where
there is only one option, it is that option's mean log-probability, which is never above 0.
"""

from collections.abc import Sequence
from typing import Any

from pilgrim.evals.items import Item

EACH = 2  # items at either end
CHARACTERS = 600  # of a text; of a context the end is kept, where the question stands


def margin(means: Sequence[float], gold: int) -> float:
    """By how many nats a token the right option leads."""
    others = [mean for option, mean in enumerate(means) if option != gold]
    return means[gold] - max(others) if others else means[gold]


def to_read(items: Sequence[Item], means: Sequence[Sequence[float]]) -> dict[str, list[dict[str, Any]]]:
    """{"best": […], "worst": […]}, the most extreme first, as plain JSON. No item is in both.

    `means` has the mean log-probability of each item's options, as they were scored.
    """
    scored = sorted(
        ((margin(found, item.gold), item, found) for item, found in zip(items, means, strict=True)),
        key=lambda entry: (-entry[0], entry[1].line),
    )
    each = min(EACH, len(scored) // 2)
    return {
        "best": [_readable(*entry) for entry in scored[:each]],
        "worst": [_readable(*entry) for entry in reversed(scored[len(scored) - each :])],
    }


def _readable(lead: float, item: Item, means: Sequence[float]) -> dict[str, Any]:
    """An item as a person reads it: what all options begin with once, then what differs."""
    contexts = {context for context, _ in item.options}
    shared = len(contexts) == 1
    return {
        "line": item.line,
        "margin": round(lead, 4),
        "context": _end(item.options[0][0] if shared else ""),
        "options": [_end(text if shared else f"{context} {text}") for context, text in item.options],
        "gold": item.gold,
        "mean_log_probs": [round(mean, 4) for mean in means],
    }


def _end(text: str) -> str:
    return text if len(text) <= CHARACTERS else "… " + text[-CHARACTERS:]
