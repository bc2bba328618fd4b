"""Rows of preference pairs: the two conversations of a pair stand side by side in one row.

A pair is two documents of a token set, 2k with the chosen reply and 2k + 1 with the rejected one. For packing
they count as one document of both lengths, so a row holds whole pairs, and so does whatever a batch is cut
into. The loss (train/preference.py) finds a reply by its document's number in the row.

Only the reply is trained, with the <|im_end|> by which it stops; the prompt before it is the same in both and
would cancel out. A pair that does not fit a row can't be learned from as it is, and is left out.

What the network that a stage began with thinks of each token is computed once (stages/dpo.py), and travels
with the batch as `extra["reference"]`: at a place, the log-probability of its target.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from pilgrim.core.runtime import Runtime
from pilgrim.data.loader import Batch, PackedRows, build_row
from pilgrim.data.packing import Piece
from pilgrim.data.preferences import Pair
from pilgrim.data.shards import Document, TokenSet
from pilgrim.text.chat import Message, render, render_prompt
from pilgrim.text.tokenizer import Tokenizer

REFERENCE = "reference"  # the name of the extra numbers

# A conversation has at least so many tokens: <|endoftext|>, two turns of <|im_start|>, <|im_end|> and a line
# end, "user\n" and "assistant\n" of two tokens each, and a reply. So a row has no more documents than this:
SHORTEST = 12


def pair_documents(pairs: Iterable[Pair], tokenizer: Tokenizer, context: int) -> tuple[list[Document], int]:
    """Chosen and rejected of each pair that fits a row of `context` tokens, in turns; and how many don't."""
    documents: list[Document] = []
    too_long = 0
    for pair in pairs:
        both = [_document(pair, reply, tokenizer) for reply in (pair.chosen, pair.rejected)]
        if sum(len(document.ids) for document in both) > context:
            too_long += 1
        else:
            documents += both
    return documents, too_long


def _document(pair: Pair, reply: tuple[Message, ...], tokenizer: Tokenizer) -> Document:
    rendered = render((*pair.prompt, *reply), tokenizer)
    before = len(render_prompt(pair.prompt, tokenizer))
    trained = [False] * before + rendered.mask[before:]
    size = sum(len(message.content.encode()) for message in reply)
    return Document(rendered.ids, trained, pair.source, size)


class PairRows(PackedRows):
    """The rows of a set of pairs, forever: every epoch in a new order, packed anew.

    `reference_n` is the log-probability of each token of the set, given what stands before it.
    """

    def __init__(
        self,
        documents: TokenSet,
        reference_n: NDArray[np.float32],
        context: int,
        end_id: int,
        runtime: Runtime,
    ) -> None:
        pairs = replace(documents, starts=documents.starts[::2])  # packed as if a pair were one document
        super().__init__(pairs, context, end_id, runtime)
        self.both, self.reference_n = documents, reference_n

    def at(self, context: int) -> "PairRows":
        if context != self.context:
            raise ValueError(f"rows of {context} tokens would cut pairs that fit rows of {self.context}")
        return self

    def row(self, pieces: Sequence[Piece]) -> Batch:
        """One row of whole pairs."""
        replies = [self._reply(2 * pair.document + i) for pair in pieces for i in (0, 1)]
        row = build_row(self.both, replies, self.context, self.end_id)
        reference = np.zeros(self.context, np.float32)
        at = 0
        for reply in replies:
            first = self.both.starts[reply.document]
            # A place has the likelihood of its target, which is the next token.
            reference[at : at + reply.length - 1] = self.reference_n[first + 1 : first + reply.length]
            at += reply.length
        return replace(row, extra={REFERENCE: torch.from_numpy(reference)[None]})

    def _reply(self, document: int) -> Piece:
        first, end = self.both.starts[document : document + 2]
        return Piece(document, 0, int(end - first))
