"""A conversation under construction, and the rules that every finished one keeps."""

from dataclasses import dataclass, field

MOST_REPLY_BYTES = (
    600  # about 150 tokens of a 4096-word vocabulary: well inside the 200 that a reply may have
)
MOST_CONVERSATION_BYTES = 1750  # about 450 tokens: fits a context of 512 with its markup


@dataclass
class Dialogue:
    """Turns of user and assistant by turns, perhaps behind a system prompt; `kind` says what is practised."""

    kind: str
    source: str
    messages: list[dict[str, str]] = field(default_factory=list)

    def system(self, content: str) -> None:
        """Puts a system prompt in front."""
        self.messages.insert(0, {"role": "system", "content": content})

    def turn(self, user: str, assistant: str) -> None:
        """Adds one exchange."""
        self.messages.append({"role": "user", "content": user})
        self.messages.append({"role": "assistant", "content": assistant})

    @property
    def user_turns(self) -> list[str]:
        """What the person says."""
        return [m["content"] for m in self.messages if m["role"] == "user"]

    @property
    def replies(self) -> list[str]:
        """What the model says."""
        return [m["content"] for m in self.messages if m["role"] == "assistant"]

    def fits(self) -> bool:
        """True if every reply and the whole stay within their limits."""
        sizes = [len(m["content"].encode()) for m in self.messages]
        longest = max(len(reply.encode()) for reply in self.replies)
        return longest <= MOST_REPLY_BYTES and sum(sizes) <= MOST_CONVERSATION_BYTES

    def row(self) -> dict[str, object]:
        """As written to the file."""
        return {"messages": self.messages, "source": self.source, "kind": self.kind}
