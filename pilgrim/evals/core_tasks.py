"""The 22 tasks of CORE, the metric of DataComp-LM (Li et al. 2024, https://arxiv.org/abs/2406.11794).

What is said of each task (kind, examples, delimiter, chance, number of items) is that of core.yaml and
eval_meta_data.csv in the evaluation bundle of karpathy/nanochat. A folder of the data holds a file for each,
such as `world_knowledge/arc_easy.jsonl`, as it is or with zstd (`.jsonl.zst`), directly or below
`eval_data/`.

`chance` is what CORE takes for guessing when it centers an accuracy. For some tasks that is not the share
that guessing gets: all items of commonsense_qa, agi_eval_lsat_ar and bigbench_language_identification have
four choices (25%), where CORE's table says 20%, 20% and 9.1%; and of boolq's two, the table has the more
frequent one's 62%. CORE is a convention, so its table is used; what guessing gets is reported beside it.
HellaSwag is asked twice, with examples and without.
"""

from dataclasses import dataclass
from pathlib import Path

from pilgrim.data.sources import ASSETS
from pilgrim.evals.items import Kind

BUNDLED = ASSETS / "evals" / "core"  # "assets:evals/core" in a recipe
ANSWER = "\nAnswer: "


@dataclass(frozen=True)
class Task:
    """One task: where its items are, how they are asked, and what guessing is taken to get."""

    name: str
    file: str  # without .jsonl
    kind: Kind
    shots: int  # examples before each item
    items: int  # in the whole file
    chance: float = 0.0  # between 0 and 1
    delimiter: str = " "  # between a context and its continuation


MC: Kind = "multiple_choice"
LM: Kind = "language_modeling"

TASKS = (
    Task("hellaswag_zeroshot", "language_understanding/hellaswag", MC, 0, 10_042, 0.25),
    Task("jeopardy", "world_knowledge/jeopardy_all", LM, 10, 2_117, delimiter=ANSWER),
    Task("bigbench_qa_wikidata", "world_knowledge/bigbench_qa_wikidata", LM, 10, 20_321),
    Task("arc_easy", "world_knowledge/arc_easy", MC, 10, 2_376, 0.25, ANSWER),
    Task("arc_challenge", "world_knowledge/arc_challenge", MC, 10, 1_172, 0.25, ANSWER),
    Task("copa", "commonsense_reasoning/copa", MC, 0, 100, 0.5),
    Task("commonsense_qa", "commonsense_reasoning/commonsense_qa", MC, 10, 1_221, 0.2),
    Task("piqa", "commonsense_reasoning/piqa", MC, 10, 1_838, 0.5, ANSWER),
    Task("openbook_qa", "commonsense_reasoning/openbook_qa", MC, 0, 500, 0.25),
    Task("lambada_openai", "language_understanding/lambada_openai", LM, 0, 5_153),
    Task("hellaswag", "language_understanding/hellaswag", MC, 10, 10_042, 0.25),
    Task("winograd", "language_understanding/winograd_wsc", "schema", 0, 273, 0.5),
    Task("winogrande", "language_understanding/winogrande", "schema", 0, 1_267, 0.5),
    Task("bigbench_dyck_languages", "symbolic_problem_solving/bigbench_dyck_languages", LM, 10, 1_000),
    Task("agi_eval_lsat_ar", "symbolic_problem_solving/agi_eval_lsat_ar", MC, 3, 230, 0.2),
    Task("bigbench_cs_algorithms", "symbolic_problem_solving/bigbench_cs_algorithms", LM, 10, 1_320),
    Task("bigbench_operators", "symbolic_problem_solving/bigbench_operators", LM, 10, 210),
    Task("bigbench_repeat_copy_logic", "symbolic_problem_solving/bigbench_repeat_copy_logic", LM, 10, 32),
    Task("squad", "reading_comprehension/squad", LM, 10, 10_570),
    Task("coqa", "reading_comprehension/coqa", LM, 0, 7_983),
    Task("boolq", "reading_comprehension/boolq", MC, 10, 3_270, 0.62, ANSWER),
    Task(
        "bigbench_language_identification",
        "language_understanding/bigbench_language_identification",
        MC,
        10,
        10_000,
        0.091,
    ),
)


def find_folder(name: str) -> Path:
    """The folder that a recipe names: `assets:evals/core` is the bundled one."""
    return ASSETS / name.removeprefix("assets:") if name.startswith("assets:") else Path(name).expanduser()


def find_file(folder: Path, task: Task) -> Path | None:
    """Where the task's items are below `folder`; None if they are not there."""
    for start in (folder / "eval_data", folder):
        for ending in (".jsonl", ".jsonl.zst"):
            if (file := start / f"{task.file}{ending}").is_file():
                return file
    return None
