"""The sentences for the teacher: everyday phrases, Debian's fortunes, and the King James Bible."""

from __future__ import annotations

import glob
import random
import re
import subprocess
from pathlib import Path

SPOKEN = re.compile(r"[A-Za-z',.!?; -]+")
SHORTEST, LONGEST = 8, 90  # letters
MIDDLE = 40  # sentences up to here come in any order
HELD_OUT = 50  # sentences that are never trained on

REPLIES = (
    "Hello.", "Hello there!", "Good morning.", "Good evening, everyone.", "Good night.", "Goodbye.",
    "See you tomorrow.", "Yes.", "No.", "Yes, of course.", "No, thank you.", "Thank you very much.",
    "You are welcome.", "I am sorry.",
    "Please wait a moment.", "How are you today?", "I am fine, thank you.", "What is your name?", "Where are you from?",
    "What time is it?", "It is nice to meet you.", "Welcome to our home.", "Could you help me, please?",
    "I do not understand.", "That is a good idea.", "Let me think about it.", "The quick brown fox is here.",
    "This is a test.", "This is a small voice.", "Have a nice day.", "Happy birthday!", "Be careful.", "Come in.",
)
WHO = ("I", "you", "we", "they", "my brother", "your sister", "the teacher", "our friends", "the children", "Anna",
       "Peter", "Mister Brown", "the old man", "a young woman", "the doctor", "everybody")
DID = ("saw", "found", "wanted", "liked", "bought", "lost", "needed", "took", "brought", "heard about", "asked for",
       "looked at", "talked about", "waited for", "remembered", "forgot")
WHAT = ("the book", "a red car", "some water", "the small house", "a cup of coffee", "the letter", "three apples",
        "the long road", "a new phone", "the blue door", "the big dog", "two tickets", "the music", "a warm coat",
        "the story", "fresh bread", "the river", "a good answer", "the window", "the train")
WHEN = ("today", "yesterday", "this morning", "last night", "on Monday", "on Friday evening", "in the summer",
        "two weeks ago", "at five o'clock", "after dinner", "before the show", "in the city", "near the station",
        "at home", "in the garden", "again")
ONES = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve", "thirteen",
        "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen")
TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")


def number(n: int) -> str:
    """Returns 1 to 999 in words."""
    if n >= 100:
        rest = n % 100
        return f"{ONES[n // 100 - 1]} hundred" + (f" and {number(rest)}" if rest else "")
    if n < 20:
        return ONES[n - 1]
    return TENS[n // 10 - 2] + (f" {ONES[n % 10 - 1]}" if n % 10 else "")


def everyday(rng: random.Random, count: int) -> list[str]:
    out = list(REPLIES)
    while len(out) < count:
        who, did, what, when = (rng.choice(options) for options in (WHO, DID, WHAT, WHEN))
        kind = rng.randrange(5)
        if kind == 0:
            out.append(f"The number is {number(rng.randrange(1, 1000))}.")
        elif kind == 1:
            out.append(f"Is that {what}?" if rng.random() < 0.3 else f"Where is {what}?")
        else:
            text = f"{who} {did} {what} {when}." if kind < 4 else f"{who} {did} {what}."
            out.append(text[0].upper() + text[1:])
    return list(dict.fromkeys(out))


def sentences(text: str) -> list[str]:
    """Returns the plain English sentences of a text: letters and punctuation, no words in capitals."""
    text = re.sub(r"\s--.*", "", text)
    text = re.sub(r"\n(?!\n)", " ", text)
    found = []
    for raw in re.split(r"(?<=[.!?])\s+|\n+", text):
        one = " ".join(raw.split()).strip("\"'` ")
        if SHORTEST <= len(one) <= LONGEST and SPOKEN.fullmatch(one) and one[0].isupper() and one[-1] in ".!?" and (
            not re.search(r"\b[A-Z]{2,}\b", one)
        ):
            found.append(one)
    return found


def fortunes() -> list[str]:
    out: list[str] = []
    for name in sorted(glob.glob("/usr/share/games/fortunes/*.u8")):
        if "art" not in Path(name).name:
            out += sentences(Path(name).read_text(errors="ignore").replace("\n%\n", "\n\n"))
    return out


def scripture() -> list[str]:
    """Returns verses that are one sentence; empty if the `bible-kjv` program is missing."""
    try:
        dump = subprocess.run(["bible", "-f", "gen1:1-rev22:21"], capture_output=True, text=True, timeout=60).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return sentences("\n\n".join(re.sub(r"^\S+\s", "", line) for line in dump.splitlines()))


def corpus(seed: int = 0) -> tuple[list[str], list[str]]:
    """Returns (training sentences, held-out sentences). Long ones come last, because a run may end at any point, and a
    few short sentences teach more words than a long one."""
    rng = random.Random(seed)
    found = list(dict.fromkeys(fortunes()))
    rng.shuffle(found)
    held_out = [s for s in found if 20 <= len(s) <= 70][:HELD_OUT]
    hidden = set(held_out)
    verses = scripture()
    rng.shuffle(verses)
    rest = [s for s in dict.fromkeys(everyday(rng, 2500) + found + verses[:8000]) if s not in hidden]
    rest.sort(key=lambda s: max(len(s), MIDDLE) + rng.uniform(0, 40))
    return rest, held_out
