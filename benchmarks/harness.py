"""Our numbers beside the harness's, item by item: `python benchmarks/harness.py runs/pocket`.

The harness is EleutherAI's lm-evaluation-harness (`pip install "pilgrim[harness]"`), in which most published
numbers are measured. Its tasks are taken as it ships them, prompts and judgement included; only their data is
replaced by the bundled items of CORE, so no network is needed. The model is the same, through our adapter
(pilgrim/evals/harness.py). Ours are asked without examples, as the harness asks. For each task:

    ours        our accuracy: options compared by nats a token
    acc         the harness's: compared by the sum of nats
    acc_norm    the harness's: by the sum over the number of characters
    ours, sum   our scores, compared by the sum: it must be acc, item by item
    same        on how many items that is so
    nats        the largest difference between two options' distances, ours and the harness's
"""

import argparse
import logging
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pilgrim.evals.core import Exam, read_exams
from pilgrim.evals.harness import Answers, lm_class, open_model
from pilgrim.evals.items import Item
from pilgrim.evals.scoring import Score, pick, score
from pilgrim.infer.engine import Engine
from pilgrim.text.foreign import Encoder

Doc = dict[str, Any]


def arc(item: Item) -> Doc:
    labels = list("ABCDEFG")[: len(item.options)]
    choices = {"text": [choice for _, choice in item.options], "label": labels}
    return {"question": _question(item), "choices": choices, "answerKey": labels[item.gold]}


def piqa(item: Item) -> Doc:
    (_, first), (_, second) = item.options
    return {"goal": _question(item), "sol1": first, "sol2": second, "label": item.gold}


def hellaswag(item: Item) -> Doc:
    """CORE's file holds what the harness's `process_docs` makes of the raw one."""
    choices = [choice for _, choice in item.options]
    return {"query": item.options[0][0], "choices": choices, "label": item.gold}


def lambada(item: Item) -> Doc:
    return {"text": " ".join(item.options[0])}


def winogrande(item: Item) -> Doc:
    """The sentence with a gap: the contexts differ in the words that go there."""
    (first, rest), (second, _) = item.options
    same = next(at for at, (a, b) in enumerate(zip(first + "\0", second + "\1", strict=False)) if a != b)
    start = first.rfind(" ", 0, same) + 1  # a gap is whole words
    return {
        "sentence": f"{first[:start]}_ {rest}",
        "option1": first[start:],
        "option2": second[start:],
        "answer": str(item.gold + 1),
    }


def _question(item: Item) -> str:
    return item.options[0][0].removeprefix("Question: ")


# CORE's name, the harness's name, its document of one of our items
TASKS: tuple[tuple[str, str, Callable[[Item], Doc]], ...] = (
    ("arc_easy", "arc_easy", arc),
    ("arc_challenge", "arc_challenge", arc),
    ("piqa", "piqa", piqa),
    ("hellaswag_zeroshot", "hellaswag", hellaswag),
    ("lambada_openai", "lambada_openai", lambada),
    ("winogrande", "winogrande", winogrande),
)

YAML = {  # where the harness keeps a task
    "arc_easy": "arc/arc_easy.yaml",
    "arc_challenge": "arc/arc_challenge.yaml",
    "piqa": "piqa/piqa.yaml",
    "hellaswag": "hellaswag/hellaswag.yaml",
    "lambada_openai": "lambada/lambada_openai.yaml",
    "winogrande": "winogrande/default.yaml",
}


@dataclass(frozen=True)
class Agreement:
    """Of one task. Lists have an entry for each item."""

    task: str
    ours: list[bool]
    ours_by_sum: list[bool]
    acc: list[bool]
    acc_norm: list[bool]  # empty where the task has none
    worst_nats: float

    @property
    def same(self) -> int:
        return sum(a == b for a, b in zip(self.ours_by_sum, self.acc, strict=True))


def compare_task(
    engine: Engine, tokenizer: Encoder, exam: Exam, task: str, document: Callable[[Item], Doc]
) -> Agreement:
    """Ask the exam's items of ours, without examples, and the harness's task of the same items."""
    zero_shot = replace(exam, task=replace(exam.task, shots=0))
    places = range(exam.asked)
    rows = [zero_shot.question(place, tokenizer, engine.config.context).rows for place in places]
    ours, items = score(engine, rows), exam.items[: exam.asked]
    samples = ask_harness(Answers(engine, tokenizer), task, [document(item) for item in items])
    language_modeling = exam.task.kind == "language_modeling"

    def right(choose: Callable[[Sequence[Score]], int]) -> list[bool]:
        if language_modeling:
            return [found[0].greedy for found in ours]
        return [choose(found) == item.gold for found, item in zip(ours, items, strict=True)]

    theirs = [[float(reply[0]) for reply in sample["filtered_resps"]] for sample in samples]
    return Agreement(
        task,
        ours=right(pick),
        ours_by_sum=right(lambda found: max(range(len(found)), key=lambda at: found[at].log_prob)),
        acc=[sample["acc"] == 1 for sample in samples],
        acc_norm=[sample["acc_norm"] == 1 for sample in samples if "acc_norm" in sample],
        worst_nats=max(_apart([s.log_prob for s in a], b) for a, b in zip(ours, theirs, strict=True)),
    )


def _apart(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """How far options lie apart, ours minus theirs. The harness also scores ids that all options begin with,
    which adds the same to each. A single option has nothing to be compared with but itself."""
    if len(ours) == 1:
        return abs(ours[0] - theirs[0])
    shift = ours[0] - theirs[0]
    return max(abs(a - b - shift) for a, b in zip(ours, theirs, strict=True))


def ask_harness(answers: Answers, task: str, documents: Sequence[Doc]) -> list[dict[str, Any]]:
    """The harness's task over these documents: its verdict on each, in their order."""
    model = lm_class()
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the many packages behind it
        import datasets
        import lm_eval.tasks
        from lm_eval.api.task import ConfigurableTask
        from lm_eval.evaluator import evaluate
        from lm_eval.tasks._yaml_loader import load_yaml

        shipped = load_yaml(Path(lm_eval.tasks.__file__).parent / YAML[task], resolve_func=True)
        config = {
            **{key: value for key, value in shipped.items() if key != "tag"},
            "custom_dataset": lambda **_: {"test": datasets.Dataset.from_list(list(documents))},
            "training_split": None,
            "validation_split": None,
            "test_split": "test",
            "process_docs": None,
        }
        tasks = {task: ConfigurableTask(config=config)}
        found = evaluate(model(answers), tasks, bootstrap_iters=0, log_samples=True)
    samples: list[dict[str, Any]] = sorted(found["samples"][task], key=lambda sample: sample["doc_id"])
    return samples


def share(right: Sequence[bool]) -> str:
    return f"{sum(right) / len(right):9.1%}" if right else f"{'':>9}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, nargs="?", help="a run's folder; or give --hf")
    parser.add_argument("--hf", type=Path, help="a Hugging Face folder")
    parser.add_argument("--items", type=int, default=100, help="of each task")
    arguments = parser.parse_args()
    engine, tokenizer = open_model(arguments.run, arguments.hf, dtype="fp32")
    exams = {exam.task.name: exam for exam in read_exams(limit=arguments.items)}
    columns = "".join(f"{name:>10}" for name in ("ours", "acc", "acc_norm", "ours, sum"))
    print(f"{'task':16} {'items':>5}{columns} {'same':>5} {'nats':>8}")
    for name, task, document in TASKS:
        found = compare_task(engine, tokenizer, exams[name], task, document)
        print(
            f"{task:16} {len(found.ours):5} {share(found.ours)} {share(found.acc)} {share(found.acc_norm)} "
            f"{share(found.ours_by_sum)} {found.same:5} {found.worst_nats:8.1e}"
        )


if __name__ == "__main__":
    main()
