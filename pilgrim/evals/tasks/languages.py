"""Which language is this? Enough of an answer to check "reply in Hindi", without a library.

Most languages that are asked for have letters of their own, and Unicode says which. Where several share
theirs (Hindi, Marathi and Nepali; Arabic, Persian and Urdu; Russian and Bulgarian; all that are written in
Latin letters), the most frequent little words decide: every sentence of some length has a few of them.
Too short a text may be in several, and an instruction about language then counts as followed if its language
is among them.
"""

import re
import unicodedata
from collections import Counter

# How the Unicode name of a letter begins -> the languages that are written with it.
SCRIPTS = {
    "LATIN": ("en", "de", "es", "fr", "it", "pt", "nl", "sv", "fi", "sw", "vi", "pl", "tr"),
    "CYRILLIC": ("ru", "bg", "uk"),
    "ARABIC": ("ar", "fa", "ur"),
    "DEVANAGARI": ("hi", "mr", "ne"),
    "BENGALI": ("bn",), "GURMUKHI": ("pa",), "GUJARATI": ("gu",), "TAMIL": ("ta",), "TELUGU": ("te",),
    "KANNADA": ("kn",), "MALAYALAM": ("ml",), "THAI": ("th",), "HANGUL": ("ko",), "GREEK": ("el",),
    "HEBREW": ("he",), "HIRAGANA": ("ja",), "KATAKANA": ("ja",), "CJK": ("zh",), "ARMENIAN": ("hy",),
    "GEORGIAN": ("ka",), "SINHALA": ("si",), "LAO": ("lo",), "MYANMAR": ("my",), "KHMER": ("km",),
}  # fmt: skip
KNOWN = frozenset(language for languages in SCRIPTS.values() for language in languages)

FREQUENT = {
    "en": "the of and to in a is that it for was you with on as are be this have he not but they or his her",
    "de": "der die das und ist ich nicht ein eine zu den mit von auf für im dem des sich es auch wir sie wie",
    "es": "el la los las de que y en un una es por con para no su al lo como más pero sus se del está",
    "fr": "le la les des de et est un une que qui dans pour pas je vous il elle ce sur avec au du en ne nous",
    "it": "il lo la gli le di che è un una per con non sono del della nel alla come più anche si ma i da",
    "pt": "o a os as de que e do da em um uma para com não por mais como mas foi ao ele ela dos das são você",
    "nl": "de het een van en is dat op te in niet zijn met voor ik je hij maar aan ook er als om bij",
    "sv": "och att det som en på är av för med den till inte har de om ett jag man var så vi kan",
    "fi": "ja on ei se että oli en hän mutta olen joka kun niin myös ovat sen hänen tai kuin minä sinä mitä",
    "sw": "na ya wa kwa ni katika la za kama hii yake cha watu huyu hiyo lakini au kuwa vya mimi wewe sana",
    "vi": "và của là không được có cho người trong một các với này đã để những tôi khi đó bạn cũng như",
    "pl": "i w nie na się z do to że jest jak co ale po tak za od jego czy są być dla przez",
    "tr": "ve bir bu da de için ile çok ne olarak ben var daha gibi ama sonra kadar o mı mi",
    "ru": "и в не на я что он с как это она но они к у по из за так же от мы для был все ты",
    "bg": "и на да се в е за от не са ще с по като че си това тя той но към при му или има",
    "uk": "і в не на що я з у та він як це до але ми по за є від так й щоб був її",
    "ar": "في من على إلى أن هذا التي الذي هذه كان لا ما مع عن هو و كل لم أو قد هي ذلك بين",
    "fa": "و در به از که این را با است برای آن یک خود تا بر هم می های شود ما من او اما",
    "ur": "کے میں کی ہے اور سے کا کو اس نے پر ہیں ایک کہ یہ بھی تھا ہو کر نہیں لیے وہ آپ ہم",
    "hi": "के है में की और से का को यह पर हैं एक कि नहीं भी था हो कर ने लिए वह जो तो मैं हम आप",
    "mr": "आहे आणि या च्या मध्ये ते ही एक हे आहेत नाही होते करण्यासाठी हा मी तो तर आपण त्या व होता साठी",
    "ne": "छ र को मा छन् हो यो गर्न एक पनि थियो लागि भएको हुन्छ तर म हामी तपाईं गर्ने यस छैन भने",
}
_WORDS = {language: frozenset(words.split()) for language, words in FREQUENT.items()}


def languages_of(text: str) -> frozenset[str]:
    """The languages that `text` may be in, as in ISO 639-1: mostly one; all where it has no letters."""
    scripts = Counter(unicodedata.name(letter, "").partition(" ")[0] for letter in text if letter.isalpha())
    known = Counter({script: count for script, count in scripts.items() if script in SCRIPTS})
    if not known:
        return KNOWN
    if known["HIRAGANA"] or known["KATAKANA"]:  # Japanese is written in Chinese characters, too
        known["HIRAGANA"] += known.pop("CJK", 0)
    languages = SCRIPTS[max(known, key=known.__getitem__)]
    if len(languages) == 1:
        return frozenset(languages)
    # \w stops at the vowel signs of Indian scripts, which are no letters; so words end at what is neither.
    words = Counter(re.findall(r"[^\s\d!-/:-@\[-`{-~।,،؟“”‘’«»]+", text.lower()))
    hits = {language: sum(words[word] for word in _WORDS[language]) for language in languages}
    return frozenset(language for language in languages if hits[language] == max(hits.values()))
