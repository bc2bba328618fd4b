"""What comes out: conversations.jsonl, to train on, and rejected.jsonl, with the reason in each row.

While old answers are decided anew, the rows are held back, and the files stay as they were; then both are
written at once, and from there on each row is added as it is decided.
"""

import json
from pathlib import Path
from typing import Any

from pilgrim.core.files import explained, write_atomic
from pilgrim.synth.making import Draft


class Rows:
    """The two files in a folder. `source` is the name under which a training stage counts the rows."""

    def __init__(self, folder: Path) -> None:
        self.kept, self.rejected = folder / "conversations.jsonl", folder / "rejected.jsonl"
        self._source = folder.resolve().name
        self._held: dict[Path, list[bytes]] | None = {self.kept: [], self.rejected: []}

    @property
    def held(self) -> bool:
        """Whether the files are still as they were."""
        return self._held is not None

    def write(self, draft: Draft, prompt: str, n: int) -> None:
        """A draft that was decided."""
        file = self.kept if draft.against is None else self.rejected
        line = _line(draft.row(prompt, f"{self._source}/{prompt}", n))
        if self._held is not None:
            self._held[file].append(line)
            return
        with explained("written", file), file.open("ab", buffering=0) as out:
            _all(out, line)

    def written_anew(self) -> None:
        """What was held back takes the place of the files."""
        assert self._held is not None
        for file, lines in self._held.items():
            write_atomic(file, b"".join(lines))
        self._held = None


def _line(row: dict[str, Any]) -> bytes:
    # Half a surrogate pair, which a rejected row may hold, becomes its JSON escape.
    return json.dumps(row, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"


def _all(out: Any, line: bytes) -> None:
    while line:  # an unbuffered write may take only a part, on a disk that is just filling up
        line = line[out.write(line) :]
