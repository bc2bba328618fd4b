"""A frozen model that is asked what it foresees, for each microbatch, just before the student reads it.

The other way would be to ask it once for all of the text, and keep the answers on the disk. That saves the
teacher's forward pass in every epoch but the first, but with 32 tokens told apart a place takes 196 bytes,
where its token takes two: 200 GB for a billion tokens. It would also tie the answers to one packing of the
documents into rows. Asked on the fly, the teacher's word is a function of the batch: nothing is to be stored,
and a resumed run gets the same to the bit. What it costs is a forward pass of the teacher, a third of what
training a model of its size would cost; the journal has measurements (2026-11-23, a teacher).
"""

from dataclasses import replace

import torch
from torch.profiler import record_function

from pilgrim.core.compiling import compiled
from pilgrim.core.runtime import Runtime
from pilgrim.data.loader import Batch
from pilgrim.model.attention_kernels import Backend, prepare
from pilgrim.model.transformer import Transformer
from pilgrim.train.distillation import IDS, LOGPROBS, TeacherSettings, foreseen
from pilgrim.train.losses import Losses
from pilgrim.train.step import TokenLosses


class Teacher:
    """`model`, in the runtime's number format, on its device. Each of several processes has its own."""

    def __init__(
        self,
        model: Transformer,
        settings: TeacherSettings,
        runtime: Runtime,
        vocabulary: int,
        backend: Backend | None = None,
    ) -> None:
        """`vocabulary`: how many tokens the student has."""
        self.model = model.to(device=runtime.device, dtype=runtime.dtype).requires_grad_(False).eval()
        self._settings, self._runtime = settings, runtime
        self._vocabulary, self._backend = vocabulary, backend
        self._foreseen = compiled(foreseen) if runtime.compile else foreseen

    def told(self, batch: Batch) -> Batch:
        """The batch with what the teacher says of each place."""
        settings = self._settings
        layout = prepare(batch.documents_bt, batch.starts_bd, self.model.windows, self._backend)
        with record_function("pilgrim.teacher"):
            ids, logprobs = self._foreseen(
                self.model,
                batch,
                self._runtime.dtype,
                self._backend,
                layout,
                settings.top_k,
                settings.temperature,
                self._vocabulary,
            )
        return replace(batch, extra={**batch.extra, IDS: ids, LOGPROBS: logprobs})


def taught(losses: TokenLosses, teacher: Teacher | None) -> TokenLosses:
    """The losses of batches that the teacher was asked about."""
    if teacher is None:
        return losses

    def told(model: Transformer, batch: Batch, dtype: torch.dtype) -> Losses:
        return losses(model, teacher.told(batch), dtype)

    return told
