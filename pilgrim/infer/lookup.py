"""Guessing the next tokens from the text itself, so that one pass can write several of them.

Reading five tokens takes hardly longer than reading one, as the time goes into fetching the weights. So if
somebody guesses the next four tokens, one pass says what the model would have drawn after each of them: the
guesses are right up to the first that differs, and even there the pass has drawn the right token. With k
right guesses, a pass writes k + 1 tokens (speculative decoding: Leviathan et al. 2023, arXiv 2211.17192).

The cheapest guesser has no weights. Replies often repeat what stands in the prompt or further up: names,
quotations, code, a list's pattern. So the last few tokens are looked up in the text so far, and what followed
them there is the guess (Saxena 2023, prompt lookup decoding).

Usually guesses are kept with some probability, so that the replies' distribution stays the same. Here more is
true: each place of a reply has a random number of its own (scheduler.py), with which its token is drawn, and
the guess is kept if it is that very token. So a reply is the *same* with and without guesses, for any dials.

A wrong guess costs what reading it took. So after a right one twice as many are dared, and after a wrong
one as few as were right; and where many texts share a pass, it is busy without guesses: none are made.

Shapes: none, only lists.
"""

from collections.abc import Sequence

ALIKE = 3  # the last tokens that must have stood there before: fewer match everywhere by chance
MOST = 8  # guesses in one pass
# More texts than this in a pass leave no room for guesses; measured (journal, 2026-11-23).
FEW_TEXTS = 4
PATIENCE = 2  # wrong first guesses in a row, after which some tokens go by without any
PAUSE = 16


class Lookup:
    """What stood behind the last tokens when they stood there before; one for each reply."""

    def __init__(self) -> None:
        self.guessed = self.right = 0
        self._behind: dict[tuple[int, ...], int] = {}  # some tokens -> the place after their last occurrence
        self._seen = ALIKE  # places up to here are in it
        self._dare = MOST // 2
        self._wrong = 0
        self._resume = 0  # no guesses before the text has so many tokens

    def guess(self, tokens: Sequence[int], most: int) -> list[int]:
        """Up to `most` tokens that may follow; call it with the same, growing text."""
        for end in range(self._seen, len(tokens)):
            self._behind[tuple(tokens[end - ALIKE : end])] = end
        self._seen = max(self._seen, len(tokens))
        at = self._behind.get(tuple(tokens[-ALIKE:]))
        if at is None or len(tokens) < self._resume:
            return []
        guess: list[int] = []
        for place in range(at, at + min(most, self._dare)):  # beyond the end, the guess repeats itself
            guess.append(tokens[place] if place < len(tokens) else guess[place - len(tokens)])
        return guess

    def learn(self, guessed: int, right: int, tokens: int) -> None:
        """How it went: `right` of `guessed` tokens, and the text now has `tokens`."""
        self.guessed += guessed
        self.right += right
        self._dare = min(2 * self._dare, MOST) if right == guessed else max(1, right)
        self._wrong = 0 if right else self._wrong + 1
        if self._wrong >= PATIENCE:
            self._wrong, self._resume = 0, tokens + PAUSE
