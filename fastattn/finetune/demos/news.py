"""Sentences of news with people, organisations and places: rows of token classification.

Names are of one set only, and so are the sentences around them. Many names are those of people,
organisations and places alike (Lincoln, Chelsea, Halifax), and many names of people are words
(Baker, Stone), so that a name by itself says little.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastattn.finetune.demos import words
from fastattn.finetune.demos.words import Chooser, part

SIZES = {"train": 2_400, "validation": 300, "test": 800}
SOURCE = "news (made-up sentences; names and wordings held out)"  # for reports

# Sentences by set. In braces: a person, an organisation, a place, a person's surname alone.
_SENTENCES = """
{PER} , a {job} from {LOC} , joined {ORG} in {month} .
{ORG} said on {day} that it would close its plant in {LOC} .
{PER} and {PER} were seen leaving the {noun} in {LOC} .
Shares of {ORG} fell {number} percent after {PER} resigned as chairman .
The {job} {PER} told reporters that {ORG} had broken the law .
Heavy rain stopped traffic between {LOC} and {LOC} on {day} .
" We had no choice , " said {LAST} , who has run {ORG} since {year} .
{LOC} will host the talks , the {job} announced .
{ORG} beat {ORG} by two goals in {LOC} .
A court in {LOC} ordered {ORG} to pay {number} million to {PER} .
{PER} was born in {LOC} and studied medicine in {LOC} .
Police in {LOC} are looking for {PER} , {number} , a former {job} .
{ORG} hired {PER} away from {ORG} last year .
The flight from {LOC} to {LOC} was late again , {LAST} complained .
{LAST} scored twice and {LAST} once before the break .
Workers at {ORG} went on strike in {month} .
The mayor of {LOC} , {PER} , opened the {noun} .
{PER} plays for {ORG} and lives near {LOC} .
Prices in {LOC} rose faster than expected in {month} .
{ORG} , based in {LOC} , makes parts for {noun}s .
When {LAST} came back to {LOC} , nobody recognised him .
Neither {ORG} nor {ORG} wanted to comment on the deal .
The {noun} was designed by {PER} for {ORG} .
Voters in {LOC} go to the polls on {day} .
{PER} sold her stake in {ORG} for {number} million .
An earthquake shook {LOC} early on {day} , and the {noun} collapsed .
According to {PER} , the {noun} belongs to the city of {LOC} .
The {job} met {LAST} at the airport of {LOC} .
{ORG} and {PER} signed a contract for {number} years .
Analysts at {ORG} expect the market to recover by {month} .
{LAST} beat {LAST} in three sets .
The train stopped in {LOC} , where {PER} got off .
Researchers of {ORG} found traces of the metal in rivers near {LOC} .
Ask {PER} , the {job} ; she has worked at {ORG} for {number} years .
He left {ORG} , moved to {LOC} and opened a bakery .
There was no {noun} , no {job} and no hope left by {day} .
Only {number} of the {noun}s were sold in {month} , fewer than in {year} .
The baker , the cook and the hunter had all seen the fox .
A stone bridge crosses the marsh to the west of the park .
No {job} is allowed to touch the silver crown .
Critics praised the new film by {PER} .
{PER} ( {ORG} ) won the race ahead of {PER} ( {ORG} ) .
The ferry to {LOC} leaves at noon .
{ORG} named {PER} its new president .
Tourists love {LOC} in {month} , but {PER} does not .
In {year} , {LAST} was the first {job} to cross the desert .
{ORG} reported a loss of {number} million for {year} .
{LOC} is {number} miles from {LOC} .
|
Officials at {ORG} denied that {PER} had ever worked there .
{PER} retired to a farm outside {LOC} .
The embassy in {LOC} has been closed since {month} .
{ORG} bought a warehouse from {ORG} .
{LAST} missed the penalty and the crowd fell silent .
The cooper sold the {noun} to a {job} in {month} .
{PER} , {number} , from {LOC} , denies the charges .
Nothing is known about the {noun} that {ORG} wants to build .
|
Investors lost patience with {ORG} when {LAST} postponed the merger .
The novelist {PER} grew up in a village south of {LOC} .
Fans of {ORG} travelled to {LOC} for the final .
" I trust my team , " {PER} said after the match against {ORG} .
Two trucks collided on the road to {LOC} , killing a {job} .
{PER} succeeded {PER} as head of {ORG} .
{LOC} and {LOC} have agreed to share the water of the river .
Lawyers for {PER} accused {ORG} of hiding the report .
The {noun} arrived in {LOC} on {day} , three weeks late .
{LAST} thanked the {job} and flew home to {LOC} .
A spokesman for {ORG} could not say how many people would lose their jobs .
She had dinner with {PER} at the old {noun} in {LOC} .
The storm is expected to reach {LOC} by {day} evening .
{ORG} opened {number} shops abroad , most of them in {LOC} .
{LAST} , the youngest {job} of the country , turned {number} in {month} .
Customers of {ORG} waited for hours .
The potter and the weaver share a house by the brook .
The walker found a golden cross under the stone .
Each {job} got a {noun} and {number} coins .
It was {PER} who discovered the comet , not {LAST} .
Born in {LOC} , {PER} spent most of his life in {LOC} .
Rumours that {ORG} might buy {ORG} drove prices up .
The people of {LOC} remember {PER} as a patient teacher .
Snow fell on {LOC} for the first time since {year} .
"""

_FILLERS = {
    "job": ["lawyer", "nurse", "minister", "painter", "pilot", "surgeon", "teacher", "engineer"],
    "noun": ["bridge", "museum", "engine", "statue", "library", "satellite", "theatre", "boat"],
    "day": ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"],
    "month": ["January", "March", "April", "May", "June", "August", "September", "November"],
}


def rows(name: str) -> list[dict[str, Any]]:
    """Returns the rows of a set, one of ``SIZES``."""
    return _Newspaper(name).rows(SIZES[name])


class _Newspaper:
    """Writes the sentences of one set."""

    def __init__(self, name: str) -> None:
        self._choose = Chooser(f"news {name}")
        block = _SENTENCES.split("|")[words.SETS.index(name)]
        self._sentences = block.strip().splitlines()
        self._first_names = part(words.FIRST_NAMES, name)
        self._surnames = part(words.SURNAMES, name)
        self._places = part(words.PLACES, name)
        self._stems = part(words.STEMS, name)
        self._shared = part(words.SHARED_NAMES, name)
        self._makers: dict[str, tuple[str, Callable[[], str]]] = {
            "PER": ("PER", self._person),
            "LAST": ("PER", self._surname),
            "ORG": ("ORG", self._organisation),
            "LOC": ("LOC", self._place),
        }

    def rows(self, count: int) -> list[dict[str, Any]]:
        """Returns different sentences."""
        found: dict[tuple[str, ...], dict[str, Any]] = {}
        while len(found) < count:
            row = self._row(self._choose.one(self._sentences))
            found.setdefault(tuple(row["tokens"]), row)
        return list(found.values())

    def _row(self, sentence: str) -> dict[str, Any]:
        tokens: list[str] = []
        tags: list[str] = []
        for word in sentence.split():
            slot, _, ending = word.removeprefix("{").partition("}")
            if not word.startswith("{"):
                tokens.append(word)
                tags.append("O")
            elif slot in self._makers:
                kind, make = self._makers[slot]
                name = make().split()
                tokens += name
                tags += [f"B-{kind}", *[f"I-{kind}"] * (len(name) - 1)]
            else:
                tokens.append(self._filler(slot) + ending)
                tags.append("O")
        return {"tokens": tokens, "tags": tags}

    def _filler(self, slot: str) -> str:
        if slot == "number":
            return str(self._choose.number(2, 90))
        if slot == "year":
            return str(self._choose.number(1850, 2020))
        return self._choose.one(_FILLERS[slot])

    def _surname(self) -> str:
        return self._choose.one(self._shared if self._choose.chance(0.3) else self._surnames)

    def _person(self) -> str:
        first = self._choose.one(self._first_names)
        if self._choose.chance(0.15):
            return first
        if self._choose.chance(0.15):
            first = f"{first[0]}."
        return f"{first} {self._surname()}"

    def _place(self) -> str:
        name = self._choose.one(self._shared if self._choose.chance(0.3) else self._places)
        if self._choose.chance(0.15):
            return self._choose.one(["North {}", "Port {}", "New {}", "{} County"]).format(name)
        return name

    def _organisation(self) -> str:
        if self._choose.chance(0.3):  # a name alone, as of a club or a firm
            return self._choose.one(self._shared)
        if self._choose.chance(0.25):
            town = self._choose.one(self._places)
            return self._choose.one(["University of {}", "Bank of {}", "{} United"]).format(town)
        stem = self._choose.one(self._stems)
        if self._choose.chance(0.15):
            return f"{self._choose.one(self._surnames)} & {self._choose.one(self._surnames)}"
        return f"{stem} {self._choose.one(['Airlines', 'Motors', 'Energy', 'Foods', 'Group'])}"
