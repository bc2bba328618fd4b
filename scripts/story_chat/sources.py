"""Writes SOURCES.md: where the bundled text comes from, its licences, and what they mean to the user."""

import hashlib
import io
from collections import Counter
from collections.abc import Mapping

import zstandard

_TEXT = """# Bundled text: sources and licences

{size} of data, so that everything works with no network. Built by `python scripts/build_assets.py --source DIR`.
The program is MIT-licensed; the text below is not: each row of `text/` and `conversations/` names its `source`,
and keeps the licence of that source.

## Licences

| source of a row | what | licence | taken from |
| --- | --- | --- | --- |
| `tinystories` | short stories, machine-written (Eldan and Li 2023) | CDLA-Sharing-1.0 | excerpts of the TinyStories data set, in mines-opt-ml/decoding-gpt@79274e31fe66, s-ajaykumar/smallGPT@b8b899265a55, yuninxia/moe-routing-bench@bb9bb0bd461a |
| `african-storybook` | children's stories | CC-BY-4.0 | global-asp/asp-source@99e022369a98 `en/`: only the stories under CC-BY |
| `pratham-storyweaver` | children's stories | CC-BY-4.0 | global-asp/pb-source@9ea530dfb001 `en/` |
| `onestopenglish/elementary` | news in easy English | CC-BY-SA-4.0 | nishkalavallabhi/OneStopEnglishCorpus@37f8db3945cd |
| `gutenberg/…` | children's classics, in `text/classics.jsonl.zst` only | public domain in the USA | Project Gutenberg, in rcdm-uga/Gutenberg_Text@a0b16d35a985 |
| `topical-chat` | greetings between people | CDLA-Sharing-1.0 | alexa/Topical-Chat@7c939229cbcf |
| `chatterbot-corpus` | small talk | BSD-3-Clause, below | gunthercox/chatterbot-corpus@a01efece2666 |
| `pilgrim` | written by hand for this project | MIT | `scripts/story_chat/phrases.txt` |

A conversation about a story holds text of that story. It names the story's source, and is under its licence.

### What that means to you

- **Training, and using what you trained**: none of these licences forbids it, whatever you use it for.
- **Passing on the text, or a changed version of it**: name where it comes from (all of them but the public
  domain ask for that), and keep the two *share-alike* licences. CC-BY-SA-4.0: what you make of that text goes
  out under CC-BY-SA-4.0 too. CDLA-Sharing-1.0: the data, and data that you enhanced it with, go out under
  CDLA-Sharing-1.0, with this notice kept.
- **Passing on a model trained on it**: CDLA-Sharing-1.0 lays nothing on what you compute from the data
  ("Results"), as long as that holds no more than a trifle of the data itself. Creative Commons licences do not
  speak of models. A model that repeats whole passages may count as passing them on: a small one trained on
  little text does so easily. Whoever wants to be sure leaves `onestopenglish/elementary` out
  (`text/train.jsonl.zst` holds {onestop} such rows) and names the other sources on the model's card.
- The authors of the single African Storybook and StoryWeaver stories are named in the repositories above, not
  in the rows.
- Outside the USA, check the classics: some authors may still be in copyright where you are. They are trained
  on only if a recipe names the file.
- TinyStories' licence is stated from the upstream data set; the three repositories carry no licence of their
  own. This is a description, not legal advice.

## Files

| file | rows | bytes | bytes unpacked | sha256 |
| --- | ---: | ---: | ---: | --- |
{files}

`text/val` and `text/classics` are copies of the source data, and so is `text/train`, without the few documents
that hold more than half of a validation document. What the script makes comes out the same, byte for byte, with
the zstd version that made it ({zstd}).

## The conversations

`conversations/train.jsonl.zst` is made of stories of `text/train.jsonl.zst` and of hand-written small talk;
`conversations/heldout.jsonl.zst` and `prompts/heldout.jsonl` of stories of `text/val.jsonl.zst` and of phrases
that training never uses; `prompts/name.jsonl` holds 50 ways to ask for the model's name, none of which training
knows. What a reply says about a story was derived by rules that stay silent where the text leaves room for doubt.

| kind | training conversations |
| --- | ---: |
{kinds}

## BSD-3-Clause, for the rows of `chatterbot-corpus`

Copyright (c) 2017, Gunther Cox. All rights reserved.

Redistribution and use in source and binary forms, with or without modification, are permitted provided that the
following conditions are met:

- Redistributions of source code must retain the above copyright notice, this list of conditions and the
  following disclaimer.
- Redistributions in binary form must reproduce the above copyright notice, this list of conditions and the
  following disclaimer in the documentation and/or other materials provided with the distribution.
- Neither the name of chatterbot nor the names of its contributors may be used to endorse or promote products
  derived from this software without specific prior written permission.

THIS SOFTWARE IS PROVIDED BY THE COPYRIGHT HOLDERS AND CONTRIBUTORS "AS IS" AND ANY EXPRESS OR IMPLIED WARRANTIES,
INCLUDING, BUT NOT LIMITED TO, THE IMPLIED WARRANTIES OF MERCHANTABILITY AND FITNESS FOR A PARTICULAR PURPOSE ARE
DISCLAIMED. IN NO EVENT SHALL THE COPYRIGHT HOLDER OR CONTRIBUTORS BE LIABLE FOR ANY DIRECT, INDIRECT, INCIDENTAL,
SPECIAL, EXEMPLARY, OR CONSEQUENTIAL DAMAGES (INCLUDING, BUT NOT LIMITED TO, PROCUREMENT OF SUBSTITUTE GOODS OR
SERVICES; LOSS OF USE, DATA, OR PROFITS; OR BUSINESS INTERRUPTION) HOWEVER CAUSED AND ON ANY THEORY OF LIABILITY,
WHETHER IN CONTRACT, STRICT LIABILITY, OR TORT (INCLUDING NEGLIGENCE OR OTHERWISE) ARISING IN ANY WAY OUT OF THE
USE OF THIS SOFTWARE, EVEN IF ADVISED OF THE POSSIBILITY OF SUCH DAMAGE.
"""  # noqa: E501


def document(files: Mapping[str, bytes], kinds: Counter[str]) -> str:
    """SOURCES.md for these files (name -> content) and counts of training conversations by kind."""
    rows = []
    for name, data in files.items():
        raw = unpacked(name, data)
        digest = hashlib.sha256(data).hexdigest()
        count = raw.count(b"\n")
        rows.append(f"| `{name}` | {count:,} | {len(data):,} | {len(raw):,} | `{digest}` |")
    corpus = unpacked("text/train.jsonl.zst", files["text/train.jsonl.zst"])
    return _TEXT.format(
        size=f"{sum(map(len, files.values())) / 1e6:.1f} MB",
        onestop=corpus.count(b'"source": "onestopenglish/'),
        files="\n".join(rows),
        zstd=".".join(map(str, zstandard.ZSTD_VERSION)),
        kinds="\n".join(f"| {kind.replace('_', ' ')} | {count:,} |" for kind, count in kinds.most_common()),
    )


def unpacked(name: str, data: bytes) -> bytes:
    """The content of a file, decompressed if its name says that it is compressed."""
    if not name.endswith(".zst"):
        return data
    with zstandard.ZstdDecompressor().stream_reader(io.BytesIO(data)) as reader:
        return reader.read()
