"""Folders that pilgrim or transformers wrote, read by pilgrim: the same logits, the same answers.

The twin of the scorer here is transformers: its tokenizer, its model, one option at a time, and a rendering
of the prompts that shares no code with ours.
"""

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

from pilgrim.core.files import read_jsonl_zst, write_json_atomic
from pilgrim.core.runtime import Runtime
from pilgrim.data.sources import read_documents
from pilgrim.evals.core import evaluate, read_exams
from pilgrim.evals.core_tasks import BUNDLED, TASKS
from pilgrim.export.huggingface import export_weights
from pilgrim.infer.huggingface import load_folder
from pilgrim.model.attention import packed_attention
from pilgrim.model.config import ModelSettings
from pilgrim.model.transformer import Transformer
from pilgrim.text.tokenizer import SPLIT_PATTERN, train_tokenizer

CPU = Runtime(torch.device("cpu"), torch.float32, compile=False, seed=1)
CONTEXT, ITEMS = 160, 3
ASKED = ("copa", "arc_easy", "winograd", "lambada_openai", "bigbench_operators")

SHAPES: dict[str, dict[str, Any]] = {
    "as small as Qwen3-0.6B is built": {"hidden_size": 48, "head_dim": 32, "tie_word_embeddings": True},
    "wide heads, other constants": {"hidden_size": 40, "head_dim": 24, "rms_norm_eps": 1e-5},
    "all layers but the first have a window": {
        "hidden_size": 32,
        "head_dim": 16,
        "use_sliding_window": True,
        "sliding_window": 24,
        "max_window_layers": 1,
    },
}


@pytest.fixture(scope="module")
def qwen_like(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer built as Qwen's: NFC, special tokens behind the vocabulary, no BOS."""
    texts = [document.text for document in read_documents(["assets:text/val.jsonl.zst"])][:200]
    made = Tokenizer(models.BPE())
    made.normalizer = normalizers.NFC()
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=500, initial_alphabet=alphabet, show_progress=False)
    )
    made.add_special_tokens(
        [
            AddedToken(t, special=True, normalized=False)
            for t in ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
        ]
    )
    folder = tmp_path_factory.mktemp("tokenizer")
    made.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": None, "eos_token": "<|im_end|>"}
    write_json_atomic(folder / "tokenizer_config.json", settings)
    return folder


@pytest.fixture(scope="module", params=SHAPES.values(), ids=list(SHAPES))
def folder(request: pytest.FixtureRequest, qwen_like: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model as transformers saves it, in several files; more ids than the tokenizer has."""
    shape = {
        "vocab_size": 512,
        "num_hidden_layers": 3,
        "num_attention_heads": 6,
        "num_key_value_heads": 3,
        "intermediate_size": 88,
        "max_position_embeddings": CONTEXT,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000.0},
        "bos_token_id": 500,
    }
    torch.manual_seed(3)
    model = Qwen3ForCausalLM(Qwen3Config(**{**shape, **request.param}))
    with torch.no_grad():
        for parameter in model.parameters():
            spread = 0.3 if parameter.ndim == 1 else 1.5 * parameter.shape[1] ** -0.5
            parameter.normal_(std=spread).add_(float(parameter.ndim == 1))
    made: Path = tmp_path_factory.mktemp("model")
    model.save_pretrained(made, max_shard_size="60KB")
    assert len(list(made.glob("*.safetensors"))) > 1
    for file in qwen_like.iterdir():
        (made / file.name).write_bytes(file.read_bytes())
    return made


def logits(model: Transformer, ids: Tensor) -> Tensor:
    return model.logits(model(ids, packed_attention(torch.zeros_like(ids), torch.float32, model.windows)))


def test_logits_are_those_of_transformers(folder: Path) -> None:
    engine, tokenizer = load_folder(folder, CPU)
    assert (tokenizer.vocab_size, tokenizer.eot_id) == (503, 500)
    load: Any = AutoModelForCausalLM.from_pretrained
    theirs = load(folder).eval()
    ids = torch.randint(512, (2, CONTEXT), generator=torch.Generator().manual_seed(8))
    with torch.no_grad():
        expected, found = theirs(ids).logits, logits(engine.model, ids)
    torch.testing.assert_close(found, expected, atol=1e-5 * float(expected.abs().max()), rtol=0)


def test_core_item_by_item_as_transformers_one_by_one(folder: Path) -> None:
    engine, tokenizer = load_folder(folder, CPU)
    exams = [exam for exam in read_exams(limit=ITEMS) if exam.task.name in ASKED]
    found = evaluate(engine, tokenizer, exams)["tasks"]
    twin = Slow(folder)
    for name in ASKED:
        for at in range(ITEMS):
            right, means = twin.answer(name, at)
            assert found[name]["mean_log_probs"][at] == pytest.approx(means, abs=1e-5), (name, at)
            assert found[name]["right"][at] == right, (name, at)
    assert found["arc_easy"]["cut"] == ITEMS and found["copa"]["cut"] == 0


class Slow:
    """CORE's rules on transformers, one row at a time."""

    def __init__(self, folder: Path) -> None:
        load: Any = AutoModelForCausalLM.from_pretrained
        self.model = load(folder).eval()
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder)

    def answer(self, name: str, at: int) -> tuple[bool, list[float]]:
        task = next(task for task in TASKS if task.name == name)
        rows = [row for _, row in read_jsonl_zst(BUNDLED / f"{task.file}.jsonl.zst")]
        random.Random(1337).shuffle(rows)
        others = [i for i in range(len(rows)) if i != at]
        drawn = [rows[i] for i in random.Random(1234 + at).sample(others, task.shots)] if task.shots else []
        shots = "".join(self.options(shot, task.delimiter)[shot.get("gold", 0)] + "\n\n" for shot in drawn)
        item, texts = rows[at], [shots + option for option in self.options(rows[at], task.delimiter)]
        if name in ("lambada_openai", "bigbench_operators"):
            texts.append(texts[0].removesuffix(item["continuation"]).rstrip())
        ids = [[500, *self.tokenizer(text, add_special_tokens=False)["input_ids"]] for text in texts]
        if "context_options" in item:
            same = next(i for i in range(999) if len({row[-1 - i] for row in ids}) > 1)
            starts = [len(row) - same for row in ids]
        else:
            same = next(i for i in range(999) if len({row[i] if i < len(row) else -1 for row in ids}) > 1)
            starts = [same] * len(ids)
        count = 1 if "continuation" in item and "context_options" not in item else len(ids)
        scored = [self.score(row, start) for row, start in zip(ids[:count], starts[:count], strict=True)]
        means = [mean for mean, _ in scored]
        return (scored[0][1] if count == 1 else means.index(max(means)) == item["gold"]), means

    def options(self, row: dict[str, Any], delimiter: str) -> list[str]:
        if "choices" in row:
            return [row["query"] + delimiter + choice for choice in row["choices"]]
        contexts = row.get("context_options") or [row["context"].strip()]
        return [context + delimiter + row["continuation"] for context in contexts]

    def score(self, ids: list[int], start: int) -> tuple[float, bool]:
        cut = max(0, len(ids) - CONTEXT)
        ids, start = ids[cut:], start - cut
        with torch.no_grad():
            found = self.model(torch.tensor([ids])).logits[0, start - 1 : -1].double()
        goals = torch.tensor(ids[start:])
        nats = found.log_softmax(-1).gather(1, goals[:, None])
        return float(nats.mean()), bool((found.argmax(-1) == goals).all())


@pytest.mark.parametrize(
    "settings",
    [
        ModelSettings(depth=2, width=64, head_size=32, context=64),
        ModelSettings(depth=3, width=40, head_size=24, heads=6, kv_heads=3, tied=True, context=64),
        ModelSettings(depth=4, width=32, head_size=16, context=64, window=12, window_pattern="SSL"),
    ],
    ids=["plain", "tied and grouped", "windows"],
)
def test_an_export_comes_back_to_the_bit(settings: ModelSettings, tmp_path: Path) -> None:
    ours = train_tokenizer(["the cat sat on the mat " * 9, "hello, hello " * 9], 288)
    model = Transformer(settings.config(ours.vocab_size))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3, generator=torch.Generator().manual_seed(parameter.numel()))
    export_weights(model.weights(), model.config, ours, tmp_path / "out")
    engine, tokenizer = load_folder(tmp_path / "out", CPU)
    assert engine.config == model.config
    assert type(tokenizer) is type(ours) and tokenizer.encode("the mat") == ours.encode("the mat")
    ids = torch.randint(288, (2, 64), generator=torch.Generator().manual_seed(8))
    with torch.no_grad():
        assert torch.equal(logits(engine.model, ids), logits(model, ids))
