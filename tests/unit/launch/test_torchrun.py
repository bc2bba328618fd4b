"""What torchrun's settings make of the ranks' endings."""

import json
import signal
from pathlib import Path

from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

from pilgrim.launch.torchrun import ended
from pilgrim.launch.verdict import MEND


def test_who_was_killed_behind_its_note_ended_as_the_note_says(tmp_path: Path) -> None:
    """Rank 1 follows and is gone first; torchrun's SIGTERM then meets rank 0 on its way out."""
    note = tmp_path / "rank-0.error.json"
    message = {"message": "the disk is full", "timestamp": 7, "time": 7.5, "rank": 0, "code": MEND}
    note.write_text(json.dumps(message))
    told = ended(0, ProcessFailure(0, 123, -signal.SIGTERM, str(note)))
    assert told == {"rank": 0, "code": MEND, "error": "the disk is full", "time": 7.5}
    silent = ended(1, ProcessFailure(1, 124, -signal.SIGTERM, str(tmp_path / "none.json")))
    assert (silent["code"], silent["error"]) == (-signal.SIGTERM, None)
