"""The model card: the README.md of an exported model, made from what its run left behind.

A card says what the model is, how to use it, what was measured, what it was trained on and under which
licences, and how it was made. All of that stands in the run's folder already (recipe, provenance, the
shards' manifests, the last evaluation), and the licences of the bundled text in `assets/SOURCES.md`; this
file only reads and formats. What is not there is not invented: the card then says that it is unknown.

A card is published, so folders of this machine don't belong in it: a path from the root is cut to its
last part, and of the provenance only code, versions, hardware and time are taken.
"""

import re
import tomllib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import tomli_w

from pilgrim.core.files import read_json
from pilgrim.core.runlog import read_rows
from pilgrim.core.stages import CHAT, TRAINED
from pilgrim.model.config import ModelConfig
from pilgrim.model.count import kv_cache_bytes, parameters, weight_bytes

LICENCES = Path(__file__).parents[1] / "assets" / "SOURCES.md"
NOT_LEARNED = ("val", "chat_val", "DONE")  # files of the shards' folder that are no set for training
BEHAVIOURS = {"ended": "ends its reply by itself", "looped": "loops", "named": "gives its name when asked"}
SOURCES_SHOWN = 40
UNKNOWN = ("", "**not known to pilgrim: state it before you publish this model**", "")


@dataclass(frozen=True)
class Subject:
    """What a card is about. `run`, `stage` and `step` are None for a model that comes from no run."""

    name: str
    config: ModelConfig
    dtype: Any  # torch.dtype, of the weights in the folder
    run: Path | None = None
    stage: str | None = None
    step: int | None = None
    finished: bool = True


def model_card(subject: Subject) -> str:
    """The text of README.md: metadata that Hugging Face's hub reads, then Markdown."""
    counts = _document_counts(subject)
    parts = [
        _metadata(counts),
        f"# {_plain(subject.name)}",
        _introduction(subject),
        _usage(subject),
        _shape(subject),
        _evaluation(subject),
        _training_text(counts),
        _limits(),
        _making(subject),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _metadata(counts: Mapping[str, int]) -> str:
    lines = [
        "library_name: transformers",
        "pipeline_tag: text-generation",
        "tags: [pilgrim]",
        "license: other",
    ]
    if counts and counts.keys() <= _licences().keys():
        lines.append("language: en")  # all bundled text is
    return "\n".join(["---", *lines, "---"])


def _introduction(subject: Subject) -> str:
    total = parameters(subject.config).total
    made = f"A language model of {total / 1e6:.1f} million parameters, trained from nothing with pilgrim."
    if subject.stage is None:
        return made
    state = f"after {subject.step:,} steps of its last stage, `{subject.stage}`"
    return f"{made} This is the model {state}{'' if subject.finished else ', which was not finished'}."


def _usage(subject: Subject) -> str:
    if subject.stage in (*CHAT, "midtrain"):
        prompt = [
            'messages = [{"role": "user", "content": "Tell me a story about a dog."}]',
            "prompt = tokenizer.apply_chat_template(",
            '    messages, add_generation_prompt=True, return_tensors="pt", return_dict=True',
            ")",
        ]
    else:  # it has learned that a document begins there
        prompt = ['prompt = tokenizer("<|endoftext|>Once upon a time", return_tensors="pt")']
    code = [
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        'folder = "."  # the folder that holds this file',
        "tokenizer = AutoTokenizer.from_pretrained(folder)",
        "model = AutoModelForCausalLM.from_pretrained(folder)",
        *prompt,
        "reply = model.generate(**prompt, max_new_tokens=200, do_sample=True, temperature=0.7)",
        'print(tokenizer.decode(reply[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True))',
    ]
    return "## Use\n\n" + _fenced("\n".join(code), "python")


def _shape(subject: Subject) -> str:
    config, count = subject.config, parameters(subject.config)
    heads = f"{config.heads} query and {config.kv_heads} key/value heads of {config.head_size}"
    rows = {
        "architecture": "Qwen3ForCausalLM: QK-norm, rotary positions, SwiGLU, RMSNorm",
        "parameters": f"{count.total:,}",
        "of them inside the layers": f"{count.matrices:,}",
        "embedding and head": "one table" if config.tied else "two tables",
        "layers": f"{config.depth}, {config.width} wide, {heads}",
        "vocabulary": f"{config.vocab_size:,} tokens, byte-level BPE",
        "context": f"{config.context:,} tokens",
        **_window_row(config),
        "weights": f"{weight_bytes(config, subject.dtype) / 1e6:.1f} MB, {str(subject.dtype).split('.')[-1]}",
        "KV cache": f"{kv_cache_bytes(config, subject.dtype):,} bytes a token",
    }
    table = "## What it is\n\n" + _table(["", ""], rows.items())
    return table if config.window is None else f"{table}\n\n{window_warning(config.window)}"


def _window_row(config: ModelConfig) -> dict[str, str]:
    if config.window is None:
        return {}
    near = sum(window is not None for window in config.windows)
    return {
        "sliding windows": f"{near} of {config.depth} layers see {config.window:,} tokens, the others all; "
        f"in order: {config.window_pattern}"
    }


def window_warning(window: int) -> str:
    """For whoever uses the model elsewhere. Threads: vllm-project/vllm 39514, ggml-org/llama.cpp 26286."""
    return (
        f"Some layers see {window:,} tokens only, which transformers computes, while llama.cpp, MLX and "
        f"vLLM were seen to ignore it for Qwen3: there, a text longer than {window:,} tokens goes wrong "
        "without a word."
    )


def _evaluation(subject: Subject) -> str:
    """From the run's last evaluation, which is of finished models; else from the stage's own log."""
    if subject.run is None or subject.stage is None:
        return ""
    bpb, replies = None, []
    result_file = subject.run / "evaluate" / "result.json"
    if subject.finished and result_file.exists():
        result = read_json(result_file)
        bpb = result["bpb"].get(subject.stage, {}).get("bpb")
        if subject.stage in CHAT:  # of the last stage, and only of one that answers, replies are measured
            replies = [(what, result.get("behaviour", {}).get(key)) for key, what in BEHAVIOURS.items()]
    else:
        evaluations = read_rows(subject.run / subject.stage / "evals.jsonl")
        bpb = next((row["bpb"] for row in evaluations if row["step"] == subject.step), None)
    rows = [] if bpb is None else [("bits per byte of held-out text", f"{bpb:.3f}")]
    for what, found in replies:
        if found:
            rows.append((what, f"{100 * found['share']:.1f}% of {found['n']} held-out prompts"))
    return "## Evaluation\n\n" + _table(["measured", ""], rows) if rows else ""


def _training_text(counts: Mapping[str, int]) -> str:
    title = "## Training text and its licences\n\n"
    if not counts:
        return (
            title + "Not known: there is no run folder that says it. State it before you publish this model."
        )
    rows = []
    for source, count in Counter(counts).most_common(SOURCES_SHOWN):
        what, licence, origin = _licences().get(source, UNKNOWN)
        rows.append((source, f"{count:,}", what, licence, origin))
    table = _table(["source", "documents", "what", "licence", "taken from"], rows)
    left_out = len(counts) - SOURCES_SHOWN
    more = f"\n\nAnd {left_out} smaller sources." if left_out > 0 else ""
    notes = (
        "The text keeps these licences. Most ask that whoever passes it on names the source, as this table "
        "does, and the CC-BY-SA and CDLA-Sharing ones that it is passed on under the same licence. "
        "Machine-written stories carry the habits of the models that wrote them. Whether a licence of the "
        "text reaches a model trained on it is not for a program to say; the weights come with no licence "
        "of pilgrim's own."
    )
    return f"{title}{table}{more}\n\n{notes}"


def _limits() -> str:
    return (
        "## Limits\n\n"
        "A model this small has learned how sentences and stories go, and little about the world. It states "
        "falsehoods fluently, loses the thread in long talks, and repeats what its training text holds, "
        "prejudices included. Nobody has trained it to refuse anything. Don't rely on it for facts or "
        "advice, and don't put it before people who take it for more than it is."
    )


def _making(subject: Subject) -> str:
    if subject.run is None:
        return ""
    provenance_file, recipe_file = subject.run / "provenance.json", subject.run / "recipe.toml"
    text = ""
    if provenance_file.exists():
        text += "\n\n" + _table(["", ""], _provenance_rows(read_json(provenance_file)))
    if recipe_file.exists():
        recipe = _without_folders(tomllib.loads(recipe_file.read_text(encoding="utf-8")))
        text += "\n\nThe recipe, every setting written out:\n\n" + _fenced(tomli_w.dumps(recipe), "toml")
    return "## How it was made" + text if text else ""


def _provenance_rows(provenance: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    code, hardware = provenance.get("code") or {}, provenance.get("hardware") or {}
    versions = provenance.get("versions") or {}
    if commit := code.get("commit"):
        yield "pilgrim", f"commit {commit[:12]}{', with changes' if code.get('dirty') else ''}"
    if versions:
        yield "versions", ", ".join(f"{package} {version}" for package, version in versions.items())
    machine = (hardware.get("gpu") or {}).get("name") or hardware.get("processor")
    if machine:
        yield "machine", str(machine)
    if time := provenance.get("time"):
        yield "begun", str(time)[:10]


def _document_counts(subject: Subject) -> dict[str, int]:
    """Documents of each source in the token sets for training: pretraining's, or those of all stages."""
    counts: Counter[str] = Counter()
    if subject.run is not None and subject.stage is not None:
        for manifest in sorted((subject.run / "shards").glob("*.json")):
            trained_on = manifest.stem == "train" or subject.stage != "pretrain"
            if trained_on and manifest.stem not in NOT_LEARNED:
                for source, count in read_json(manifest).get("sources", {}).items():
                    counts[_family(source)] += count
        pairs = subject.run / "dpo" / "pairs" / "train.json"
        if pairs.exists() and subject.stage in TRAINED[TRAINED.index("dpo") :]:
            for source, count in read_json(pairs).get("sources", {}).items():
                counts[_family(source)] += count  # both replies of a pair
    return dict(counts)


def _family(source: str) -> str:
    """The bundled classics name author and book too; they are one source here. Paths are cut."""
    return "gutenberg/…" if source.startswith("gutenberg/") else _without_folders(source)


@cache
def _licences() -> dict[str, tuple[str, str, str]]:
    """From assets/SOURCES.md, for each source: what it is, its licence, and where it was taken from."""
    found = {}
    for line in LICENCES.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if len(cells) == 4 and cells[0].startswith("`"):
            found[cells[0].strip("`")] = cells[1], cells[2].removesuffix(", below"), cells[3]
    return found


def _without_folders(value: Any) -> Any:
    """The same settings with every path from the root or the home folder cut to its last part."""
    if isinstance(value, dict):
        return {key: _without_folders(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_without_folders(inner) for inner in value]
    if isinstance(value, str) and re.match(r"[/~\\]|[A-Za-z]:[/\\]", value):
        return re.split(r"[/\\]", value.rstrip("/\\"))[-1]
    return value


# Markdown -----------------------------------------------------------------------------------------


def _table(head: list[str], rows: Iterable[Iterable[str]]) -> str:
    lines = [head, ["---"] * len(head), *([_plain(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _plain(text: str) -> str:
    """Text that can't break out of a table's cell or a heading, and holds no HTML."""
    return " ".join(text.replace("|", "\\|").replace("<", "&lt;").split())


def _fenced(text: str, language: str) -> str:
    longest = max((len(ticks) for ticks in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"
