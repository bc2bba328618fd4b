"""The 25 kinds of instruction in IFEval, each a function of its arguments that makes a function of the reply.

Their names and arguments are those of the data; what they mean is defined in the paper (Zhou et al. 2023,
https://arxiv.org/abs/2311.07911, table 4) and, to the letter, in google-research's instructions.py, after
which each was written anew. Where that uses other programs, this uses rules of its own:

    sentences   nltk's Punkt there; here a text is cut at . ! ? that stand before white space, but not behind
                an abbreviation, an initial or a number in a list
    words in    nltk's tokenizer there; here words are runs of letters, digits, apostrophes and hyphens
    capitals
    language    langdetect there; here by script, and by frequent words among languages in Latin letters
                (languages.py)

So counts of sentences may differ by one where a text abbreviates, and a reply of a few words may be taken for
another language. Beside the port of that code in lm-evaluation-harness 0.4.13, on 42 replies for each of the
data's instructions but those about sentences, 20 of 24 kinds agreed on every reply. The others: language, on
replies of a word or two; and how often "#" occurs, for which the port counts a letter that it draws.
"""

import json
import re
from collections.abc import Callable

from pilgrim.evals.tasks.languages import KNOWN, languages_of

Check = Callable[[str], bool]

_ABBREVIATION = re.compile(
    r"(?:\b(?i:mr|mrs|ms|dr|prof|st|vs|etc|jr|sr|inc|ltd|fig|e\.g|i\.e)|\b[A-Z]|(?:^|\n)\s*\d+)\.$"
)


def related(relation: str, bound: int) -> Callable[[int], bool]:
    """ "at least" or "less than" a number."""
    match relation:
        case "at least":
            return lambda count: count >= bound
        case "less than":
            return lambda count: count < bound
    raise ValueError(f'the relation {relation!r} is neither "at least" nor "less than"')


def sentences(reply: str) -> int:
    """How many sentences a text has; a line break ends one only if it is an empty line."""
    count = 0
    for block in re.split(r"\n\s*\n", reply):
        begin = 0
        for end in re.finditer(r"[.!?…]+[\"'”’)\]*]*(?=\s|$)", block):
            if _ABBREVIATION.search(block[begin : end.end()]) and end.end() < len(block.rstrip()):
                continue
            count += bool(re.search(r"\w", block[begin : end.end()]))
            begin = end.end()
        count += bool(re.search(r"\w", block[begin:]))
    return count


def number_sentences(relation: str, num_sentences: int) -> Check:
    holds = related(relation, num_sentences)
    return lambda reply: holds(sentences(reply))


def number_words(relation: str, num_words: int) -> Check:
    holds = related(relation, num_words)
    return lambda reply: holds(len(re.findall(r"\w+", reply)))


def number_paragraphs(num_paragraphs: int) -> Check:
    """Paragraphs that are parted by ***; one between two marks must not be empty."""

    def check(reply: str) -> bool:
        parts = re.split(r"\s?\*\*\*\s?", reply)
        inner = [part.strip() for part in parts]
        ends = (not inner[0]) + (not inner[-1] and len(inner) > 1)
        return all(inner[1:-1]) and len(inner) - ends == num_paragraphs

    return check


def nth_paragraph_first_word(num_paragraphs: int, nth_paragraph: int, first_word: str) -> Check:
    """So many paragraphs, parted by empty lines, and one of them begins with a given word."""

    def check(reply: str) -> bool:
        paragraphs = reply.split("\n\n")
        if sum(bool(part.strip()) for part in paragraphs) != num_paragraphs:
            return False
        if nth_paragraph > len(paragraphs) or not (chosen := paragraphs[nth_paragraph - 1].split()):
            return False
        begin = re.split(r"[.,?!'\"]", chosen[0].lstrip("'\""))[0]
        return begin.lower() == first_word.lower()

    return check


def existence(keywords: list[str]) -> Check:
    wanted = [keyword.lower() for keyword in keywords]
    return lambda reply: all(keyword in reply.lower() for keyword in wanted)


def forbidden_words(forbidden_words: list[str]) -> Check:
    found = [re.compile(rf"\b{re.escape(word)}\b", re.IGNORECASE) for word in forbidden_words]
    return lambda reply: not any(word.search(reply) for word in found)


def frequency(keyword: str, frequency: int, relation: str) -> Check:
    holds = related(relation, frequency)
    return lambda reply: holds(reply.lower().count(keyword.strip().lower()))


def letter_frequency(letter: str, let_frequency: int, let_relation: str) -> Check:
    holds = related(let_relation, let_frequency)
    return lambda reply: holds(reply.lower().count(letter.lower()))


def response_language(language: str) -> Check:
    if language not in KNOWN:
        raise ValueError(f"the language {language!r} is not known here")
    return lambda reply: language in languages_of(reply)


def number_placeholders(num_placeholders: int) -> Check:
    return lambda reply: len(re.findall(r"\[.*?\]", reply)) >= num_placeholders


def postscript(postscript_marker: str) -> Check:
    marks = {"P.P.S": r"p\.\s?p\.\s?s", "P.S.": r"p\.\s?s\."}
    mark = re.compile(marks.get(postscript_marker, re.escape(postscript_marker)), re.IGNORECASE)
    return lambda reply: mark.search(reply) is not None


def number_bullet_lists(num_bullets: int) -> Check:
    """Lines that begin with "* " or "- ", but not with two asterisks, which is bold."""

    def check(reply: str) -> bool:
        stars = re.findall(r"^\s*\*[^\*].*$", reply, re.MULTILINE)
        dashes = re.findall(r"^\s*-.*$", reply, re.MULTILINE)
        return len(stars) + len(dashes) == num_bullets

    return check


def constrained_response() -> Check:
    allowed = ("My answer is yes.", "My answer is no.", "My answer is maybe.")
    return lambda reply: any(answer in reply for answer in allowed)


def number_highlighted_sections(num_highlights: int) -> Check:
    """*like this* or **like this**, with something inside."""

    def check(reply: str) -> bool:
        single = [part for part in re.findall(r"\*([^\n\*]*)\*", reply) if part.strip()]
        double = [part for part in re.findall(r"\*\*([^\n\*]*)\*\*", reply) if part.strip()]
        return len(single) + len(double) >= num_highlights

    return check


def multiple_sections(section_spliter: str, num_sections: int) -> Check:
    """ "SECTION 1", "SECTION 2", …: the word and a number."""
    mark = re.compile(rf"\s?{re.escape(section_spliter)}\s?\d+\s?")
    return lambda reply: len(mark.findall(reply)) >= num_sections


def json_format() -> Check:
    """The whole reply is JSON, in a code block or not."""

    def check(reply: str) -> bool:
        bare = reply.strip()
        for mark in ("```json", "```Json", "```JSON", "```"):
            bare = bare.removeprefix(mark)
        try:
            json.loads(bare.removesuffix("```").strip())
        except (ValueError, RecursionError):
            return False
        return True

    return check


def title() -> Check:
    return lambda reply: any(found.strip("<> ") for found in re.findall(r"<<[^\n]+>>", reply))


def two_responses() -> Check:
    """Two different replies, with ****** between them."""

    def check(reply: str) -> bool:
        parts = [part.strip() for part in reply.split("******")]
        if not all(parts[1:-1]):
            return False
        said = [part for part in parts if part]
        return len(said) == 2 and said[0] != said[1]

    return check


def repeat_prompt(prompt_to_repeat: str) -> Check:
    return lambda reply: reply.strip().lower().startswith(prompt_to_repeat.strip().lower())


def end_checker(end_phrase: str) -> Check:
    return lambda reply: reply.strip().strip('"').lower().endswith(end_phrase.strip().lower())


def quotation() -> Check:
    def check(reply: str) -> bool:
        said = reply.strip()
        return len(said) > 1 and said[0] == said[-1] == '"'

    return check


def capital_word_frequency(capital_frequency: int, capital_relation: str) -> Check:
    holds = related(capital_relation, capital_frequency)
    return lambda reply: holds(sum(word.isupper() for word in re.findall(r"[\w'’-]+", reply)))


def english_capital() -> Check:
    return lambda reply: reply.isupper() and "en" in languages_of(reply)


def english_lowercase() -> Check:
    return lambda reply: reply.islower() and "en" in languages_of(reply)


def no_comma() -> Check:
    return lambda reply: "," not in reply


CHECKS: dict[str, Callable[..., Check]] = {
    "change_case:capital_word_frequency": capital_word_frequency,
    "change_case:english_capital": english_capital,
    "change_case:english_lowercase": english_lowercase,
    "combination:repeat_prompt": repeat_prompt,
    "combination:two_responses": two_responses,
    "detectable_content:number_placeholders": number_placeholders,
    "detectable_content:postscript": postscript,
    "detectable_format:constrained_response": constrained_response,
    "detectable_format:json_format": json_format,
    "detectable_format:multiple_sections": multiple_sections,
    "detectable_format:number_bullet_lists": number_bullet_lists,
    "detectable_format:number_highlighted_sections": number_highlighted_sections,
    "detectable_format:title": title,
    "keywords:existence": existence,
    "keywords:forbidden_words": forbidden_words,
    "keywords:frequency": frequency,
    "keywords:letter_frequency": letter_frequency,
    "language:response_language": response_language,
    "length_constraints:nth_paragraph_first_word": nth_paragraph_first_word,
    "length_constraints:number_paragraphs": number_paragraphs,
    "length_constraints:number_sentences": number_sentences,
    "length_constraints:number_words": number_words,
    "punctuation:no_comma": no_comma,
    "startend:end_checker": end_checker,
    "startend:quotation": quotation,
}
