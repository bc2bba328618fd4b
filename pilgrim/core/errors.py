"""Errors that a person can act on.

Whatever is wrong with what the user gave us (a setting, a file, a checkpoint) is raised as a
`PilgrimError` whose text is one sentence: the place, the value, and the cure. The command line
prints that sentence and exits with code 2; anything else is a bug of ours and keeps its traceback.
"""


class PilgrimError(Exception):
    """Something the user can mend; `str(error)` is one sentence with the place, the value and the cure."""


class SettingsError(PilgrimError):
    """A recipe or an override that is unknown, mistyped or contradicts itself."""


class DataError(PilgrimError):
    """Text, conversations or shards that can't be used as they are."""


class CheckpointError(PilgrimError):
    """No checkpoint in a folder is whole."""


class ChangedRecipe(PilgrimError):
    """The recipe differs from the one that a half-finished run was started with."""


class ToldElsewhere(PilgrimError):
    """Another process of this run has failed, or met the same error, and tells the person why."""


class StartAgain(PilgrimError):
    """The run had to end, and has noted what will let it go on when it is started again."""


class Fenced(PilgrimError):
    """The run was started again while this process was still at work; it must not write any more."""


class Stopped(KeyboardInterrupt):
    """A person or the system asked the run to stop, and it did, after a step. No error: nothing is lost."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(f"stopped by signal {signal_number}")
        self.signal_number = signal_number
