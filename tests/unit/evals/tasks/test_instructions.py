"""Each of IFEval's instructions, with replies that follow it and replies that don't."""

from typing import Any

import pytest

from pilgrim.core.errors import DataError
from pilgrim.core.files import read_jsonl_zst
from pilgrim.evals.chat_tasks import BUNDLED
from pilgrim.evals.tasks.instruction_checks import CHECKS, sentences
from pilgrim.evals.tasks.instructions import read_ifeval, variants
from pilgrim.evals.tasks.languages import KNOWN, languages_of

CASES: list[tuple[str, dict[str, Any], list[str], list[str]]] = [
    ("keywords:existence", {"keywords": ["dog", "day"]}, ["A Dog had a day."], ["A dog.", ""]),
    ("keywords:forbidden_words", {"forbidden_words": ["cat"]}, ["category"], ["A Cat!"]),
    ("keywords:frequency", {"keyword": "go", "frequency": 2, "relation": "at least"}, ["Go, go"], ["go"]),
    ("keywords:frequency", {"keyword": "go", "frequency": 2, "relation": "less than"}, ["go"], ["Go, go"]),
    (
        "keywords:letter_frequency",
        {"letter": "x", "let_frequency": 2, "let_relation": "at least"},
        ["x X"],
        ["x"],
    ),
    (
        "language:response_language",
        {"language": "de"},
        ["Das ist ein Haus und der Hund ist nicht da."],
        ["This is a house and the dog is not there."],
    ),
    (
        "language:response_language",
        {"language": "hi"},
        ["यह एक घर है और वह मेरा नहीं है।"],
        ["हे एक घर आहे आणि ते माझे नाही.", "This is it."],
    ),
    ("language:response_language", {"language": "ko"}, ["안녕하세요"], ["hello to the world"]),
    (
        "length_constraints:number_sentences",
        {"relation": "at least", "num_sentences": 2},
        ["One. Two!", "Is it? It is"],
        ["One, two.", "Dr. No"],
    ),
    (
        "length_constraints:number_sentences",
        {"relation": "less than", "num_sentences": 2},
        ["One."],
        ["A b. C d."],
    ),
    (
        "length_constraints:number_paragraphs",
        {"num_paragraphs": 2},
        ["one\n\n***\n\ntwo", "one *** two ***"],
        ["one", "one *** *** two", "a *** b *** c"],
    ),
    (
        "length_constraints:number_words",
        {"relation": "less than", "num_words": 3},
        ["one two"],
        ["one two three"],
    ),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "Weekend"},
        ['one\n\n"Weekend, at last', "one\n\nweekend."],
        ["one\n\ntwo", "weekend\n\none", "one\n\nweekend\n\nthree"],
    ),
    (
        "detectable_content:number_placeholders",
        {"num_placeholders": 2},
        ["[name] [city]"],
        ["[name]", "name"],
    ),
    (
        "detectable_content:postscript",
        {"postscript_marker": "P.S."},
        ["Bye.\nP.S. More", "p. s. more"],
        ["PS more"],
    ),
    (
        "detectable_content:postscript",
        {"postscript_marker": "P.P.S"},
        ["P.P.S more", "p. p. s"],
        ["P.S. more"],
    ),
    (
        "detectable_format:number_bullet_lists",
        {"num_bullets": 2},
        ["* a\n* b", "- a\n* b"],
        ["* a", "**a**\n* b"],
    ),
    ("detectable_format:constrained_response", {}, ["So: My answer is yes."], ["Yes."]),
    (
        "detectable_format:number_highlighted_sections",
        {"num_highlights": 2},
        ["*a* and *b*", "**a** *b*"],
        ["*a*", "** **"],
    ),
    (
        "detectable_format:multiple_sections",
        {"section_spliter": "SECTION", "num_sections": 2},
        ["SECTION 1\na\nSECTION 2\nb"],
        ["SECTION 1\na", "SECTION one SECTION two"],
    ),
    (
        "detectable_format:json_format",
        {},
        ['{"a": 1}', "```json\n[1]\n```"],
        ["a: 1", "{'a': 1}", "[" * 99999],
    ),
    ("detectable_format:title", {}, ["<<A day>>\nIt was"], ["<A day>", "<<>>", "<< >>"]),
    ("combination:two_responses", {}, ["yes\n******\nno"], ["yes", "yes******yes", "a******b******c"]),
    ("combination:repeat_prompt", {"prompt_to_repeat": "Say hi."}, ["say hi. Hi!"], ["Hi! Say hi."]),
    (
        "startend:end_checker",
        {"end_phrase": "Any questions?"},
        ["So. any questions?\n", '"Any questions?"'],
        ["Any questions? No."],
    ),
    ("startend:quotation", {}, ['"Hi."', ' "a" '], ["Hi", '"', "'Hi'"]),
    (
        "change_case:capital_word_frequency",
        {"capital_frequency": 2, "capital_relation": "at least"},
        ["I AM here", "A-B C"],
        ["I am"],
    ),
    ("change_case:english_capital", {}, ["THIS IS THE END"], ["This is", "DAS IST NICHT DER HUND"]),
    ("change_case:english_lowercase", {}, ["this is the end"], ["This is", "das ist nicht der hund"]),
    ("punctuation:no_comma", {}, ["one two"], ["one, two"]),
]


@pytest.mark.parametrize(("name", "arguments", "follow", "miss"), CASES)
def test_instructions(name: str, arguments: dict[str, Any], follow: list[str], miss: list[str]) -> None:
    row = {"key": 1, "prompt": "Do it.", "instruction_id_list": [name], "kwargs": [arguments]}
    item = read_ifeval(row, 1, "f, line 1")
    for reply in follow:
        assert item.grade(reply).right, reply
    for reply in miss:
        assert not item.grade(reply).right, reply
    assert not item.grade(" ").right


def test_every_instruction_is_tried() -> None:
    assert {name for name, *_ in CASES} == set(CHECKS) and len(CHECKS) == 25
    rows = [row for _, row in read_jsonl_zst(BUNDLED / "ifeval" / "input_data.jsonl.zst")]
    assert {name for row in rows for name in row["instruction_id_list"]} <= set(CHECKS)


def test_loose_forgives_the_frame() -> None:
    row = {
        "key": 1,
        "prompt": "Do it.",
        "instruction_id_list": ["startend:quotation", "punctuation:no_comma"],
        "kwargs": [{}, {}],
    }
    verdict = read_ifeval(row, 1, "f").grade('Sure, here it is:\n"Hi."')
    assert not verdict.right
    assert verdict.parts == {"strict": (False, False), "loose": (True, True)}
    assert verdict.note == "not followed: startend:quotation, punctuation:no_comma"
    assert variants("a\n*b*\nc") == [
        *("a\n*b*\nc", "*b*\nc", "a\n*b*", "*b*"),
        *("a\nb\nc", "b\nc", "a\nb", "b"),
    ]


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("", 0),
        ("One", 1),
        ("One. Two. Three", 3),
        ("Mr. Smith met Dr. J. Doe, e.g. here.", 1),
        ("1. First\n2. Second", 1),
        ("Pi is 3.14 here.", 1),
        ('"Why?" he said. "Because!"', 3),
        ("A title\n\nA text.", 2),
        ("Wait... what?!", 2),
    ],
)
def test_sentences(text: str, count: int) -> None:
    assert sentences(text) == count


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("The dog is in the house and it is big.", "en"),
        ("Le chien est dans la maison et il ne dort pas.", "fr"),
        ("O cachorro não está em casa, mas ele vai para a rua.", "pt"),
        ("Mbwa ni mkubwa na yuko katika nyumba ya mtu.", "sw"),
        ("Tôi không biết những người này là ai.", "vi"),
        ("Koira on talossa, mutta se ei ole iso.", "fi"),
        ("Это не мой дом, и я не знаю, что это.", "ru"),
        ("Това не е моята къща и аз не знам какво е.", "bg"),
        ("هذا البيت في المدينة على البحر من الحجر", "ar"),
        ("این خانه را من در شهر دیدم و از آن خوشم آمد", "fa"),
        ("یہ گھر میرا ہے اور میں اس میں نہیں ہوں", "ur"),
        ("यो घर मेरो हो र म यसमा छैन", "ne"),
        ("இது என் வீடு", "ta"),
        ("これは私の家です", "ja"),
        ("这是我的家", "zh"),
    ],
)
def test_languages(text: str, language: str) -> None:
    assert languages_of(text) == {language}


def test_some_text_may_be_in_many_languages() -> None:
    assert languages_of("12 + 3 = 15") == KNOWN
    assert {"en", "fi"} < languages_of("Xyzzy plugh") and "ru" not in languages_of("Xyzzy plugh")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"kwargs": []}, '"instruction_id_list" and "kwargs" must be two lists of the same length'),
        ({"instruction_id_list": [], "kwargs": []}, "there is no instruction to check"),
        ({"instruction_id_list": ["keywords:none"]}, "the instruction 'keywords:none' is none that this"),
        ({"kwargs": [3]}, 'the "kwargs" of punctuation:no_comma are 3, but must be an object'),
        ({"kwargs": [{"x": 1}]}, "punctuation:no_comma can't be checked with {'x': 1}"),
        (
            {
                "instruction_id_list": ["length_constraints:number_words"],
                "kwargs": [{"relation": "about", "num_words": 3}],
            },
            "length_constraints:number_words can't be checked with",
        ),
        (
            {"instruction_id_list": ["keywords:existence"], "kwargs": [{"keywords": 3}]},
            "keywords:existence can't be checked with {'keywords': 3}",
        ),
        (
            {
                "instruction_id_list": ["length_constraints:number_words"],
                "kwargs": [{"relation": "at least", "num_words": "three"}],
            },
            "length_constraints:number_words can't be checked with",
        ),
        ({"prompt": ""}, "\"prompt\" is '' where there must be text"),
    ],
)
def test_rows_that_cannot_be_graded(change: dict[str, Any], problem: str) -> None:
    row = {"key": 1, "prompt": "Do.", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}
    with pytest.raises(DataError) as told:
        read_ifeval(row | change, 9, "ifeval.jsonl, line 9")
    assert str(told.value).startswith(f"ifeval.jsonl, line 9: {problem}")
