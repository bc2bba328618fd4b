"""Stopping at a string, wherever the borders of tokens lie.

A stop string such as "\\nUser:" may begin in the middle of one token and end in that of another, and a
character may be made of several tokens. So the text is what is watched, not the ids. What could still
become a stop string is held back: of "…\\nUse" nobody should see the last four characters before it is clear
how it goes on.

The reply ends as soon as its text ends with one of the strings; if with several, the longest counts. The text
stops before it. That doesn't depend on how the text is cut into tokens.
"""

from collections.abc import Sequence

from pilgrim.core.errors import SettingsError
from pilgrim.text.tokenizer import StreamDecoder, Tokenizer


class StopStrings:
    """Hand it to `Engine.submit` as `until`; one for each reply."""

    def __init__(self, tokenizer: Tokenizer, strings: Sequence[str]) -> None:
        """Raises SettingsError for an empty string, which would end every reply before it begins."""
        if "" in strings:
            raise SettingsError('stop: "" is in every text; leave it out')
        self.stopped = False
        self._strings = tuple(strings)
        self._decoder = StreamDecoder(tokenizer)
        self._held = ""  # perhaps the beginning of a stop string
        self._ready = ""

    def __call__(self, token_id: int) -> bool:
        """Takes the reply's next token; True if the reply ends with it."""
        self._look_at(self._decoder.feed(token_id))
        return self.stopped

    def text(self) -> str:
        """What can be shown and was not given before."""
        ready, self._ready = self._ready, ""
        return ready

    def rest(self) -> str:
        """The same when the reply is over: nothing can become a stop string any more."""
        if not self.stopped:
            self._look_at(self._decoder.finish())
        if not self.stopped:
            self._ready, self._held = self._ready + self._held, ""
        return self.text()

    def _look_at(self, piece: str) -> None:
        self._held += piece
        found = [(at + len(s), at) for s in self._strings if (at := self._held.find(s)) >= 0]
        if found:
            self.stopped = True
            safe = min(found)[1]
        else:
            safe = len(self._held) - max((self._begun(s) for s in self._strings), default=0)
        self._ready, self._held = self._ready + self._held[:safe], self._held[safe:]

    def _begun(self, string: str) -> int:
        """How many characters at the end could be the beginning of `string`."""
        longest = min(len(string) - 1, len(self._held))
        return next((n for n in range(longest, 0, -1) if self._held.endswith(string[:n])), 0)
