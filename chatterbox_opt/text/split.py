"""Splits long text into pieces a model can speak: where a speaker would breathe, and within a word only if forced to.

Every place where a text may be cut has a cost. The pieces are the cheapest path, which joins short neighbours and evens
out lengths without losing or moving a character.
"""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_left, bisect_right
from itertools import accumulate, pairwise
from math import inf
from numbers import Integral

# Costs of cuts. A piece's own cost is at most 2, so no worse kind of cut is chosen just to even out lengths. Only what
# the models babble on costs more: short pieces, and those without a letter or digit, if a neighbour has room for these.
PARAGRAPH, SENTENCE, DOUBTFUL, CLAUSE, WORD, HARD = -0.9, 0.0, 3.0, 6.0, 30.0, 200.0
INSIDE = 2.0  # added within quotes or round brackets
SHORT, SHORT_COST = 25, 8.0  # a short piece costs more than a clause cut
SILENT_COST = 20.0  # of a rule of dashes: more than a doubtful cut, a clause's and a short piece's
BREATHS = ((PARAGRAPH, 0.6), (DOUBTFUL, 0.3), (CLAUSE, 0.12))  # (cost of a cut up to which, s of pause)
SHORTEST_LIMIT = 20  # smallest max_chars
_SAID = str.isalnum  # whether a character is a letter or digit: on a lone stop, quote or rule the models babble
WIDE = 3  # a Han, kana or Hangul character takes as long to say as three letters

_CLOSERS = "\"'”’»›)]}」』）】》〉〕］｣*_"
_OPENERS = "\"'“‘«»‹›([{「『（【《〈〔［｢¿¡„‚-–—*_"
_WIDE_STOPS = "。！？｡．"  # end a sentence with or without a following blank
_STOPS = frozenset(".!?…‽؟۔।॥։።፧׃\u037e" + _WIDE_STOPS)
_PAUSES = frozenset(",;:،؛፣፤፥·、，；：")
_DASHES = frozenset("-–—―")
_BEHIND = frozenset(_CLOSERS + "“‘«‹⁰¹²³⁴⁵⁶⁷⁸⁹")  # a stop, ahead of a blank: what closes in any language, and notes
_NOTE = re.compile(r"\[(?:\d{1,4}|[a-z])\]")
_CLOSES = re.compile(r"[»›](?=[\s.,;:!?)\]}»›]|\Z)")  # the French way; what follows it otherwise is quoted
_BLANKS = re.compile(r"\s+")
_UNSPACED = re.compile(
    r"(?!(?<=[0-9０-９])[．，：][0-9０-９])"  # "３．５％" and "１，０００" are numbers
    rf"(?:[{_WIDE_STOPS}…]*[{_WIDE_STOPS}][{_WIDE_STOPS}….!?]*|[、，；：]+|[—―]+)[{re.escape(_CLOSERS)}]*"
)
_BREAK = re.compile(r"\r\n?|[\n\u2028]")
WIDE_CHAR = re.compile(
    "[\u1100-\u11ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff]"
)
_QUOTED = re.compile(
    r"\([^()]{1,280}\)|“[^“”]{1,280}”|„[^„“”]{1,280}[“”]|"
    r"(?<![\w.!?…,])«[^«»]{1,280}»|(?<!\S)»(?=\S)[^«»]{1,280}«|"  # French; German
    r"「[^「」]{1,280}」|『[^『』]{1,280}』|（[^（）]{1,280}）|"
    r"(?<![\w\"])\"[^\"\n]{1,280}\"(?!\w)"
)
_TAG = re.compile(r"\[[^\[\]\n]{1,40}\]")  # [clear throat] is one event and is never cut



def _words(*lines: str) -> frozenset[str]:
    return frozenset(word for line in lines for word in line.split())


# The stop after these ends no sentence: a name or a word follows.
_NEVER = _words(
    "mr mrs ms dr prof hon col maj capt cmdr lt sgt supt messrs mme mlle mgr sra srta dra hrn dña",
    "cf vs ca approx bzw evtl ggf vgl bspw sog inkl resp zzgl e.g i.e z.b d.h u.a p.ej",
    "г-н г-жа ул им тов проф т.е т.к",
)
# The stop after these ends no sentence if a number follows; otherwise they are ordinary words.
_NUMBERED = _words(
    "no nos nr vol vols fig figs ch sec art arts pp pg p eq tel núm nº cap pág",
    "jan feb mar apr jun jul aug sep sept oct nov dec стр рис см гл",
)
# The stop after these may or may not end a sentence.
_DOUBTFUL = _words(
    "etc inc ltd co corp dept univ assn bros est min max avg hrs hr mins secs ft oz lb lbs kg km mi mph am pm ad bc",
    "st sr jr rev gen sen rep gov pres ed eds trans fr sig str abs usw usf osv mm jne enz ecc al ibid op cit",
    "rd ave blvd mt",
    "т.д т.п и.о пр др г гг гр руб коп тыс млн млрд",
)


def check_max_chars(value: int) -> None:
    if not isinstance(value, Integral) or isinstance(value, bool) or value < SHORTEST_LIMIT:
        least = f"a whole number from {SHORTEST_LIMIT} is needed"
        raise ValueError(f"max_chars={value!r}: {least}, or None to leave texts whole")


def split_text(text: str, max_chars: int = 280) -> list[str]:
    """Returns pieces of at most `max_chars`, without blanks at their ends. A text that fits is returned unchanged."""
    check_max_chars(max_chars)
    if len(text) * WIDE <= max_chars:
        return [text]
    width = [0, *accumulate(_widths(text))]  # width[b] - width[a] is the length of text[a:b]
    if width[-1] <= max_chars:
        return [text]
    said = [0, *accumulate(map(_SAID, text))]  # counted like the width
    cuts = _cheapest(width, said, _cuts(text, width, max_chars), max_chars)
    pieces = [text[a:b].strip() for a, b in zip([0, *cuts], [*cuts, len(text)])]
    return [p for p in pieces if p] or [""]


def spans(text: str, pieces: list[str]) -> list[tuple[int, int]]:
    """Returns (first character, past the last) of each piece from split_text(), with the blanks around it; the spans
    cover the text."""
    starts, at = [], 0
    for piece in pieces:
        if not text.startswith(piece, at) and (blank := _BLANKS.match(text, at)):
            at = blank.end()
        if not text.startswith(piece, at):
            raise ValueError(f"{piece[:40]!r} does not stand where the piece before it ends")
        starts.append(at)
        at += len(piece)
    return list(pairwise([0, *starts[1:], len(text)]))


def breath(text: str, at: int, after: int | None = None) -> float:
    """Returns the seconds that a reader pauses before text[at]; what is said next begins at `after`, if not there."""
    start = at
    while start and text[start - 1].isspace():
        start -= 1
    if start < at:
        price = _blank(text, start, at, after)
    else:
        last = text[:at].rstrip(_CLOSERS)[-1:]
        price = SENTENCE if last in _STOPS else CLAUSE if last in _PAUSES or last in _DASHES else HARD
    return next((seconds for most, seconds in BREATHS if price <= most), 0.0)


def finished_length(text: str) -> int:
    """Returns the characters up to the last certain sentence end, which has text after it; 0 if there is none."""
    for match in reversed(list(_BLANKS.finditer(text))):
        paragraph = _blank(text, match.start(), match.end()) == PARAGRAPH
        if paragraph or (match.end() < len(text) and _blank(text, match.start(), match.end()) <= SENTENCE):
            return match.end()
    stops = [m.end() for m in _UNSPACED.finditer(text) if any(c in _WIDE_STOPS for c in m.group())]
    return next((at for at in reversed(stops) if at < len(text)), 0)


def stop_ends_sentence(text: str, stop: int, after: int) -> bool | None:
    """Whether the stop before text[stop] ends a sentence and not just an abbreviation; None if uncertain.
    The text from `after` on follows it."""
    if not text[after:].strip():
        return True
    cost = _sentence_end(text, stop, after)
    return None if cost == DOUBTFUL else cost < DOUBTFUL


def says_something(text: str) -> bool:
    """Whether there is a letter or digit, as in a mark for the model itself."""
    return any(map(_SAID, text))


def width(text: str) -> int:
    """Returns how long the text takes to say, in letters."""
    return sum(_widths(text))


def _widths(text: str) -> list[int]:
    widths = [1] * len(text)
    if not text.isascii():
        for match in WIDE_CHAR.finditer(text):
            widths[match.start()] = WIDE
    return widths


def _cuts(text: str, width: list[int], limit: int) -> list[tuple[int, float]]:
    """Returns (first character of the next piece, cost) in order; worse kinds only where better ones are too far apart.
    """
    cost: dict[int, float] = {}
    words: list[tuple[int, float]] = []
    for match in _BLANKS.finditer(text):
        price = _blank(text, match.start(), match.end())
        if price < WORD:
            cost[match.end()] = price
        else:
            words.append((match.end(), price))
    for match in _UNSPACED.finditer(text):
        stop = any(c in _WIDE_STOPS for c in match.group())
        cost.setdefault(match.end(), SENTENCE if stop else CLAUSE)
    for start, end in _gaps(cost, width, limit):
        nearby = words[bisect_right(words, (start, inf)) : bisect_left(words, (end,))]
        cost.update(nearby)
    for start, end in _gaps(cost, width, limit):
        cost.update(dict.fromkeys(_hard_cuts(text, width, start, end, limit), HARD))
    _charge_inside(text, cost)
    return _thinned([(at, cost[at]) for at in sorted(cost) if 0 < at < len(text)], width, limit)


def _thinned(cuts: list[tuple[int, float]], width: list[int], limit: int) -> list[tuple[int, float]]:
    """Drops cuts close to one as good, so that not every combination of "a. b. c. d." has to be examined."""
    kept = [(0, inf)]
    for cut, (following, _) in zip(cuts, [*cuts[1:], (len(width) - 1, 0.0)]):
        last = kept[-1]
        crowded = width[cut[0]] - width[last[0]] < 8 and width[following] - width[last[0]] <= limit // 4
        if not crowded or cut[1] < last[1]:
            kept.append(cut)
    return kept[1:]


def _gaps(cost: dict[int, float], width: list[int], limit: int) -> list[tuple[int, int]]:
    """Returns the spans without a cut that are too long for one piece."""
    edges = [0, *sorted(cost), len(width) - 1]
    return [(a, b) for a, b in pairwise(edges) if width[b] - width[a] > limit]


def _hard_cuts(text: str, width: list[int], start: int, end: int, limit: int) -> list[int]:
    """Returns cuts as far apart as allowed, but not between a letter and its combining marks."""
    cuts, at = [], start
    while width[end] - width[at] > limit:
        furthest = bisect_right(width, width[at] + limit, at, end) - 1
        nearest = max(at + 1, furthest - 16)
        at = next((i for i in range(furthest, nearest, -1) if not _joined(text, i)), furthest)
        cuts.append(at)
    return cuts


def _joined(text: str, at: int) -> bool:
    """Whether text[at] continues the visible character before it: combining marks, joined emoji, Jamo."""
    before, after = text[at - 1], text[at]
    skin = "\U0001f3fb" <= after <= "\U0001f3ff"
    jamo = "\u1160" <= after <= "\u11ff"  # the later letters of a decomposed syllable
    return skin or jamo or "\u200d" in (before, after) or unicodedata.category(after)[0] == "M"


def _blank(text: str, start: int, end: int, after: int | None = None) -> float:
    """Returns the cost of a cut at the blanks text[start:end]; what is said next begins at `after`, if not there."""
    breaks = 0 if end - start == 1 and text[start] == " " else len(_BREAK.findall(text, start, end))
    if breaks > 1 or "\u2029" in text[start:end]:
        return PARAGRAPH
    after = end if after is None else after
    if not breaks and _CLOSES.match(text, after):
        return WORD + INSIDE
    mark = _end_of_words(text, start)
    last = text[mark - 1] if mark else ""
    if last in _STOPS:
        return _sentence_end(text, mark, after)
    if last in _PAUSES or breaks:
        return CLAUSE
    following = text[after : after + 1]
    if last in _DASHES:  # "a - b" is cut after its dash, "a -b" and "a- b" are not cut
        return CLAUSE if mark < 2 or text[mark - 2].isspace() or text[mark - 2] in _DASHES else WORD + INSIDE
    return WORD + INSIDE if following in _DASHES or following in _STOPS or following in _PAUSES else WORD


def _end_of_words(text: str, end: int) -> int:
    """Returns where the words and stops before text[end] end: what closes a quotation stands behind them, as do marks
    of footnotes and invisible characters."""
    spaced = False
    while end > 0:
        char = text[end - 1]
        note = text.rfind("[", max(0, end - 7), end) if char == "]" else -1
        if note >= 0 and _NOTE.fullmatch(text, note, end):
            end = note
        elif char in "»›" and not spaced and text[end - 2 : end - 1] in (" ", "\u00a0", "\u202f"):
            spaced, end = True, end - 2  # once: in a row of these, time would be quadratic
        elif char in _BEHIND or (char > "\x7f" and unicodedata.category(char) == "Cf"):
            end -= 1
        else:
            break
    return end


def _sentence_end(text: str, end: int, after: int) -> float:
    """Returns the cost of a cut after the stops that end at `end`; the next word is at or after `after`."""
    start = end
    while start > 0 and text[start - 1] in _STOPS:
        start -= 1
    follower = _first_letter(text, after)
    if text[start:end] != ".":  # "Stop!" he said; well... maybe
        return CLAUSE if follower.islower() else SENTENCE
    word = _word_before(text, start)
    bare = word.lower()
    initial = len(word) == 1 and word != "I" and unicodedata.category(word) in ("Lu", "Lt")
    if initial or bare in _NEVER or (bare in _NUMBERED and follower.isdecimal()):
        return WORD + INSIDE  # J. Smith, Mr. Smith, No. 5
    if bare in _DOUBTFUL or "." in word:
        return WORD + INSIDE if follower.islower() else DOUBTFUL
    if word.isdecimal() and len(word) <= 2:  # "1. Item" at the start of a line; "am 3. Mai"; "he was 12."
        return WORD + INSIDE if follower.islower() or _starts_line(text, start - len(word)) else DOUBTFUL
    return CLAUSE if follower.islower() else SENTENCE


def _first_letter(text: str, at: int) -> str:
    """Returns the next letter or digit, past blanks and opening marks; "" if there is none near."""
    for char in text[at : at + 8]:
        if char not in _OPENERS and not char.isspace():
            return char
    return ""


def _word_before(text: str, end: int) -> str:
    """Returns the word right before the stop at `end`, with stops inside it: "U.S", "z.B", "Smith"."""
    start = end
    while start > max(0, end - 20) and (text[start - 1].isalnum() or text[start - 1] in ".-º"):
        start -= 1
    return text[start:end].lstrip(".-")


def _starts_line(text: str, at: int) -> bool:
    before = text[max(0, at - 3) : at]
    return not before.strip(" \t") or before.rstrip(" \t").endswith(("\n", "\r"))


def _charge_inside(text: str, cost: dict[int, float]) -> None:
    """Raises the cost of cuts within quotes or brackets."""
    at = sorted(cost)
    for pattern, price in ((_QUOTED, INSIDE), (_TAG, WORD)):
        for match in pattern.finditer(text):
            first = bisect_right(at, match.start())
            while first < len(at) and at[first] < match.end():
                cost[at[first]] += price
                first += 1


def _cheapest(width: list[int], said: list[int], cuts: list[tuple[int, float]], limit: int) -> list[int]:
    """Returns the cheapest path over the cuts. A piece costs 1 plus the square of the fraction it leaves unused, and
    more if it is short or says nothing."""
    at = [0, *(a for a, _ in cuts), len(width) - 1]
    price = [0.0, *(p for _, p in cuts), 0.0]
    best, came = [0.0] * len(at), [0] * len(at)
    first = silent = 0  # the first cut from which a piece may reach to this one, and from which it would say nothing
    for j in range(1, len(at)):
        end = width[at[j]]
        while end - width[at[first]] > limit:
            first += 1
        while said[at[silent]] < said[at[j]]:
            silent += 1
        options = (
            (best[i] + _piece(end - width[at[i]], limit) + (SILENT_COST if i >= silent else 0.0), i)
            for i in range(first, j)
        )
        total, came[j] = min(options)
        best[j] = total + price[j]
    path, j = [], came[-1]
    while j > 0:
        path.append(at[j])
        j = came[j]
    return path[::-1]


def _piece(length: int, limit: int) -> float:
    room = 1.0 - length / limit
    return 1.0 + room * room + (SHORT_COST if length < min(SHORT, limit // 4) else 0.0)
