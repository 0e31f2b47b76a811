"""Captions to tokens, as the COCO caption toolkit makes them, but without its Java: Stanford's Penn Treebank tokeniser.

The toolkit (tylin/coco-caption, ``ptbtokenizer.py``) runs CoreNLP 3.4.1 with ``-lowerCase`` and takes away what is
punctuation. Here are the lexer's rules that matter to captions, written anew; the longest match wins, of equal ones the
first rule. Tests compare it with the original.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.metadata import version

import regex

from sightbridge.errors import SettingsError

PUNCTUATION = frozenset(
    ["''", "'", "``", "`", "-LRB-", "-RRB-", "-LCB-", "-RCB-", ".", "?", "!", ",", ":", "-", "--", "...", ";"]
)
"""Tokens that the toolkit takes away. Its brackets are in capitals, the tokens are not, so brackets stay."""

L, D = r"[\p{L}\p{M}\u00AD--[\uFE00-\uFE0F]]", r"\p{Nd}"
APOS = r"['\u0092\u2019]"
ACRONYM = r"[A-Za-z](?:\.[A-Za-z])+"
ABBREVIATIONS = (
    "mrs?|ms|mme|mlle|messrs|msgr|drs?|profs?|sens?|reps?|attys?|govs?|supts?|lt|lieut|col|gen|adm|rev|maj|sgt|cpl|pvt|"
    "capt|ste?|ave|pres|hon|brig|co?mdr|pfc|spc|det|mt|ft|adj|adv|asst|assoc|ens|insp|sfc|vs|alex|wm|jos|cie|cf|treas|"
    "jan|feb|mar|apr|jun|jul|aug|sept?|oct|nov|dec|mon|tues?|wed|thu(?:rs)?|fri|"
    r"inc|cos?|corp|pp?ty|ltd|plc|rt|bancorp|bhd|bldg|dept|assn|univ|intl|sys|jr|sr|bros|blvd|rd|esq|ct|ph\.d|ed\.d|ph|"
    "tel|est|ext|sq|etc|al|seq|"
    "ala|ariz|calif|colo|conn|dak|fla|ga|ind|kans?|ky|md|mich|minn|mo|mont|neb|nev|okla|penn|tenn|va|vt|wisc?|wyo"
)
CAPITALISED = "Ark|Az|Del|Ill|La|Mass|Miss|Ore|Pa|Tex|Wash"
"""States whose short names are words too."""
BEFORE_NUMBERS = "art|ca|figs?|nos?|op|pp|prop"
STARTERS = (
    "A|About|After|An|As|At|But|He|Her|Here|However|If|In|It|Many|More|Now|Once|One|Other|Our|She|Since|So|Some|Such|"
    "That|The|Their|Then|There|These|They|This|We|What|When|While|Yet|You"
)
"""Behind these a new sentence has begun: a single letter in front was no initial."""
NUMBER = rf"(?:{D}*(?:[.:,\u00AD\u066B\u066C]{D}+)+|{D}+)"
WORD = rf"(?:{L}(?:{L}|{D})*(?:[.!?]{L}(?:{L}|{D})*)*|{D}(?:{L}|{D})*(?:(?:[.!?]{L}(?:{L}|{D})*)+(?=\s|$))?)"
HOST, PATH = r"(?:[^\s\"`'<>|.!?(){},$-]+\.)+", r"[^\s\"<>|()]+[^\s\"<>|.!?(){},-]"
THING = rf"(?:[dDoOlL]{APOS}(?:{L}|{D}))?(?:{L}|{D})+(?:[-_](?:[dDoOlL]{APOS}(?:{L}|{D}))?(?:{L}|{D})+)*"


def _keep(text: str) -> str:
    return text


def _quotes(text: str) -> str:
    return regex.sub(r"\u2019|\u0092", "'", text)


def _currency(text: str) -> str:
    return {"\u00a2": "cents", "\u00a3": "#", "\u20ac": "$"}[text]


def _fraction(text: str) -> str:
    return FRACTIONS.get(text, text.replace("\u2044", "/").replace(" ", "\u00a0"))


def _round_brackets(text: str) -> str:
    return text.replace("(", "-LRB-").replace(")", "-RRB-")


def _phone(text: str) -> str:
    return _round_brackets(text).replace(" ", "\u00a0")


FRACTIONS = {"\u00bc": "1/4", "\u00bd": "1/2", "\u00be": "3/4", "\u2153": "1/3", "\u2154": "2/3"}
BRACKETS = {"(": "-LRB-", ")": "-RRB-", "[": "-LSB-", "]": "-RSB-", "{": "-LCB-", "}": "-RCB-"}


Rule = tuple[str, Callable[[str], str]]
RULES: list[Rule] = [
    # words that are two, and auxiliaries behind words: the group is the token, all of the match is its length
    (r"(can)not|(gon)na|(got)ta|(lem)me|(gim)me|(wan)na|(['\u2019]t)(?:is|was)", _quotes),
    (rf"({WORD}){APOS}(?:[msd]|re|ve|ll)", _keep),
    (rf"({L}+?)n{APOS}t", _keep),
    (rf"(n{APOS}t)", _quotes),
    (rf"({APOS}(?:[msd]|re|ve|ll))(?!\p{{L}})", _quotes),
    (rf"(y{APOS})\p{{L}}", _quotes),
    (
        rf"{APOS}[nN]{APOS}?|[lLdDjJ]{APOS}|somethin{APOS}|ol{APOS}|{APOS}em|[Cc]{APOS}mon|{APOS}[2-9]0s|{APOS}till?",
        _keep,
    ),
    # addresses
    (r"https?://[^\s\"<>|()]+[^\s\"<>|.!?(){},-]", _keep),
    (rf"(?:www\.(?:[^\s\"<>|.!?(){{}},]+\.)+[a-zA-Z]{{2,4}}|{HOST}(?:com|net|org|edu))(?:/{PATH})?", _keep),
    (r"[a-zA-Z0-9][^\s\"<>|(){}]*@(?:[^\s\"<>|(){}.]+\.)*[^\s\"<>|(){}.]+", _keep),
    (r"[@#]\p{L}[\p{L}_]*", _keep),
    (r"<(?:[!?][A-Za-z-][^>\r\n]*|/?[A-Za-z][A-Za-z0-9_:.-]*(?: [^<>\r\n]*)?)/?>|<<|>>", _keep),
    # words and numbers
    (WORD, _keep),
    (THING, _quotes),
    (rf"[A-Za-z0-9][A-Za-z0-9.,\u00AD]*(?:-(?:[A-Za-z0-9\u00AD]+|{ACRONYM}\.))+", _keep),
    (r"[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}(?:/[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}){1,2}", _keep),
    (r"[A-Z]+(?:(?:[+&]|&amp;)[A-Z]+)+|[A-Za-z]\+\+|C#", lambda text: text.replace("&amp;", "&")),
    (rf"[+-]?{NUMBER}", _keep),
    (r"(?:\p{Nd}{1,4}[- \u00A0])?\p{Nd}{1,4}[/\u2044]\p{Nd}{1,4}|[\u00BC-\u00BE\u2153\u2154]", _fraction),
    (r"\([0-9]{2,3}\)[ \u00A0]?[0-9]{3,4}[- \u00A0]?[0-9]{3,5}", _phone),
    (r"\p{Nd}{1,2}[-/]\p{Nd}{1,2}[-/]\p{Nd}{2,4}", _keep),
    (rf"(?:(?i:{ABBREVIATIONS})|{CAPITALISED}|{ACRONYM})\.", _keep),
    (rf"[A-Za-z]\.(?! (?:{STARTERS})\b)|(?i:{BEFORE_NUMBERS})\.(?= ?{D})|({WORD}\.)[,;:]", _keep),
    (r"[\u207A\u207B\u208A\u208B]?(?:[\u2070\u00B9\u00B2\u00B3\u2074-\u2079]+|[\u2080-\u2089]+)", _keep),
    # signs
    (r"[A-Z]*\$|#+", _keep),
    (r"[\u00A2\u00A3\u20AC]", _currency),
    (
        r"[<>]?[:;=][-o*']?[()DPdpO\\{@|\[\]](?![A-Za-z0-9])|:3(?![A-Za-z0-9])",
        _round_brackets,
    ),
    (r"[\u2013\u2014\u2015]|-{2,4}", lambda _: "--"),
    (r"-{5,}|-|\\[*/]", _keep),
    (r"\.\.\.+|\u2026|\.(?: \.)+", lambda _: "..."),
    (r"[?!]+", _keep),
    (r"[,;:.]", _keep),
    (r"''|``|[\"'`\u2018-\u201F\u00AB\u00BB\u2039\u203A]", lambda _: "''"),
    (r"[()\[\]{}]", lambda text: BRACKETS[text]),
    (r"&amp;", lambda _: "&"),
    (r"_+|\*+", _keep),
    (r"-(?i:[lr][rcs]b)-", _keep),
    (r"[\p{S}\p{P}\u00B2\u00B3\u00B9]", _keep),
]
"""Pattern, and how its text is written; a pattern's first group that matched is the token, if it has groups."""


@cache
def _rules() -> list[tuple[regex.Pattern[str], Callable[[str], str]]]:
    return [(regex.compile(pattern, regex.V1), write) for pattern, write in RULES]


@lru_cache(maxsize=2**12)
def _rules_of(first: str) -> list[tuple[regex.Pattern[str], Callable[[str], str]]]:
    """Rules whose matches may begin with this character."""
    return [(pattern, write) for pattern, write in _rules() if pattern.match(first, partial=True)]


ASTRAL = regex.compile(r"[\U00010000-\U0010FFFF]")
TWO_WORDS = "cannot|gonna|gotta|lemme|gimme|wanna"
ENDED = rf"(?!(?:(?i:{ABBREVIATIONS})|{CAPITALISED})\.)[A-Za-z]{{2,}}\.(?= *$)"
SPACED = r"[A-Za-z]+(?:(?:-[A-Za-z]+)*|'s)(?:,? |,?$)"
PLAIN = regex.compile(rf"(?:(?!(?:{TWO_WORDS})\b)(?:{SPACED}|{ENDED})|,(?= )|\.(?= *$))+", regex.V1)
"""What most of a caption is: words with spaces or commas behind them, and a full stop at the end. No rule but that of
words can be longer there, and to try all rules for every word takes twenty times as long."""


def ptb_tokens(text: str) -> list[str]:
    """Every token of a text, punctuation and all, in lower case but for brackets.

    >>> ptb_tokens("A man's dog (brown), isn't it?")
    ['a', 'man', "'s", 'dog', '-lrb-', 'brown', '-rrb-', ',', 'is', "n't", 'it', '?']
    """
    text = ASTRAL.sub(" ", text)  # Java's characters have 16 bits, and the lexer drops the others
    tokens: list[str] = []
    place = 0
    while place < len(text):
        if text[place] == " ":  # no rule begins with one
            place += 1
            continue
        if plain := PLAIN.match(text, place):
            tokens += plain[0].replace("'", " '").replace(",", " ,").replace(".", " .").lower().split()
            place = plain.end()
            continue
        token, place = _next(text, place)
        if token:
            tokens.append(token.lower())
    return tokens


def _next(text: str, place: int) -> tuple[str, int]:
    """The token at ``place``, empty for white space and what the lexer does not know, and where it ends."""
    longest, found, written = 0, None, _keep
    for pattern, write in _rules_of(text[place]):
        match = pattern.match(text, place)
        if match and match.end() - place > longest:
            longest, found, written = match.end() - place, match, write
    if found is None:
        return "", place + 1
    group = found.lastindex or 0
    return written(found[group]), found.end(group)


@lru_cache(maxsize=2**17)  # several metrics, each of all rows and of those of a language or type, read the same texts
def caption_tokens(text: str, language: str = "en") -> str:
    """The tokens of a caption that metrics count, with spaces between.

    Chinese is parted into characters, Japanese and Thai into words before (see ``segment``), as in mBLIP.

    >>> caption_tokens("A red circle, at the top-left.")
    'a red circle at the top-left'
    """
    parted = unicodedata.normalize("NFC", segment(text, language)) if language in SEGMENTERS else text
    return " ".join(token for token in ptb_tokens(parted.replace("\n", " ")) if token not in PUNCTUATION)


def segment(text: str, language: str) -> str:
    """Put spaces between the words of a language that is written without; other languages stay as they are.

    Raises ``SettingsError`` if the package that knows the words is not installed.
    """
    if language not in SEGMENTERS:
        return text
    return " ".join(piece for piece in SEGMENTERS[language].cut()(text) if not piece.isspace())


def segmenter_version(language: str) -> str | None:
    """What parts texts of ``language`` and in which version, to stand beside a score; ``None`` if nothing does."""
    if language not in SEGMENTERS:
        return None
    packages = SEGMENTERS[language].packages
    if not packages:
        return "characters"
    SEGMENTERS[language].cut()
    return " ".join(f"{name} {version(name)}" for name in packages)


@dataclass(frozen=True)
class Segmenter:
    """``cut`` makes what parts a text; ``packages`` must be there for it."""

    cut: Callable[[], Callable[[str], list[str]]]
    packages: tuple[str, ...] = ()


def _chinese() -> Callable[[str], list[str]]:
    """As spaCy's blank ``zh``, which mBLIP took: every character by itself."""
    return list


@cache
def _japanese() -> Callable[[str], list[str]]:
    """As spaCy's blank ``ja``: SudachiPy's shortest units (mode A)."""
    try:
        from sudachipy import Dictionary, SplitMode  # pyright: ignore[reportMissingImports]

        tokenizer = Dictionary(dict="core").create(SplitMode.A)
    except ImportError as error:
        raise _missing("Japanese", "SudachiPy and sudachidict-core") from error
    return lambda text: [morpheme.surface() for morpheme in tokenizer.tokenize(text)]


@cache
def _thai() -> Callable[[str], list[str]]:
    """As spaCy's blank ``th``: PyThaiNLP's default, the longest words of its dictionary (newmm)."""
    try:
        from pythainlp.tokenize import word_tokenize  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise _missing("Thai", "PyThaiNLP") from error
    return lambda text: list(word_tokenize(text))


def _missing(language: str, package: str) -> SettingsError:
    return SettingsError(
        f"captions in {language} are parted into words by {package}, which is not installed: "
        "pip install -c constraints.txt 'sightbridge[languages]'"
    )


SEGMENTERS: dict[str, Segmenter] = {
    "zh": Segmenter(_chinese),
    "ja": Segmenter(_japanese, ("sudachipy", "sudachidict-core")),
    "th": Segmenter(_thai, ("pythainlp",)),
}
"""By language: those that are written without spaces between words, as mBLIP parts them."""
