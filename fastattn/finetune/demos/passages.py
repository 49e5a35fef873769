"""Passages with questions: rows of extractive question answering, some without an answer.

A passage is about two people, two firms or two buildings, and says of each some things; a question
is about one of them. Nothing but the name tells whose year, place or teacher is asked for, and one
question in five asks for what the passage says of the other alone: it has no answer. Names are of
one set only, and so are the wordings of facts and questions.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from typing import Any, NamedTuple

from fastattn.finetune.demos import words
from fastattn.finetune.demos.words import Chooser, part

_PASSAGES = {"train": 600, "validation": 60, "test": 200}
_QUESTIONS = 4  # a passage
SIZES = {name: count * _QUESTIONS for name, count in _PASSAGES.items()}
SOURCE = "passages (made-up facts; names and wordings held out)"  # for reports

# Of each list of five wordings, by set.
_WORDINGS = {"train": (0, 2), "validation": (2, 3), "test": (3, 5)}

# What can be said of whom: kind of the answer, then five wordings and five questions.
# {s} is the subject, {a} the answer.
_FACTS = {
    "person": """
place
{s} was born in {a}. / {s} came into the world in {a}. / {s} is a native of {a}. / The parents of
{s} lived in {a} when the child was born. / {s} hails from {a}.
Where was {s} born? / In which city was {s} born? / What is the birthplace of {s}? / Where does
{s} come from? / Which town is {s} a native of?

job
{s} worked as {a}. / By profession, {s} was {a}. / {s} was employed as {a}. / {s} earned a living
as {a}. / For many years {s} was {a}.
What did {s} work as? / What was the profession of {s}? / What was the job of {s}? / How did {s}
earn a living? / What did {s} do for work?

person
{s} was taught by {a}. / {s} took lessons from {a}. / The tutor of {s} was {a}. / It was {a} who
trained {s}. / {s} had {a} as a teacher.
Who taught {s}? / From whom did {s} take lessons? / Who was the tutor of {s}? / Who was the
teacher of {s}? / Which person trained {s}?

year
{s} died in {a}. / {s} passed away in {a}. / The death of {s} was in {a}. / {s} lived until {a}. /
In {a}, {s} died after a long illness.
When did {s} die? / In what year did {s} pass away? / When was the death of {s}? / In which year
did the life of {s} end? / Until when did {s} live?

instrument
{s} played {a}. / In the evenings {s} practised {a}. / {s} was fond of playing {a}. / {s} was
often heard playing {a}. / On Sundays {s} would play {a}.
What did {s} play? / Which instrument did {s} practise? / What was {s} fond of playing? / What was
{s} heard playing? / Which musical instrument did {s} master?
""",
    "firm": """
person
{s} was founded by {a}. / {a} started {s}. / The founder of {s} is {a}. / {s} was set up by {a}. /
It was {a} who established {s}.
Who founded {s}? / By whom was {s} founded? / Who is the founder of {s}? / Who set up {s}? / Which
person established {s}?

place
{s} has its head office in {a}. / {s} is based in {a}. / The headquarters of {s} are in {a}. / {s}
is run from {a}. / The main building of {s} stands in {a}.
Where is the head office of {s}? / Where is {s} based? / Where are the headquarters of {s}? / From
which city is {s} run? / In which town does {s} have its main building?

year
{s} was founded in {a}. / {s} began business in {a}. / {s} has existed since {a}. / {s} opened for
business in {a}. / The history of {s} starts in {a}.
When was {s} founded? / In which year did {s} begin business? / Since when has {s} existed? / In
what year did {s} open? / How far back does {s} go?

product
{s} makes {a}. / {s} produces {a}. / {s} is a manufacturer of {a}. / {s} is known for its {a}. /
Most of what {s} sells are {a}.
What does {s} make? / What does {s} produce? / What does {s} manufacture? / Which goods is {s}
known for? / What does {s} sell?

number
{s} employs {a} people. / {s} has {a} employees. / The staff of {s} numbers {a}. / A total of {a}
people work at {s}. / {s} gives work to {a} men and women.
How many people does {s} employ? / How many employees does {s} have? / How large is the staff of
{s}? / How many people work at {s}? / What is the number of workers at {s}?
""",
    "building": """
person
{s} was designed by {a}. / {a} drew the plans of {s}. / The architect of {s} was {a}. / {s} is a
work of {a}. / {s} was planned by {a}.
Who designed {s}? / Who drew the plans of {s}? / Who was the architect of {s}? / Whose work is
{s}? / Who planned {s}?

place
{s} is in {a}. / {s} stands in {a}. / {s} can be found in {a}. / People who visit {a} go to see
{s}. / {s} is one of the sights of {a}.
Where is {s}? / In which city does {s} stand? / Where can {s} be found? / Which town does one
visit to see {s}? / What city is home to {s}?

year
{s} was opened in {a}. / The opening of {s} took place in {a}. / Since {a}, {s} has been open. /
{s} was completed in {a}. / Work on {s} ended in {a}.
When was {s} opened? / In which year did the opening of {s} take place? / Since when has {s} been
open? / When was {s} completed? / In what year did work on {s} end?

height
{s} is {a} high. / {s} has a height of {a}. / {s} rises {a}. / {s} measures {a} from the ground to
the top. / From the top of {s} it is {a} to the ground.
How high is {s}? / What is the height of {s}? / How far does {s} rise? / How much does {s}
measure? / How tall is {s}?

material
{s} is made of {a}. / {s} was built from {a}. / The walls of {s} are of {a}. / For {s}, {a} was
used. / {s} consists of {a}.
What is {s} made of? / What was {s} built from? / What are the walls of {s} of? / What was used
for {s}? / Which material does {s} consist of?
""",
}

_KINDS = {
    "job": """a baker,a nurse,a judge,a printer,a gardener,a pilot,a surgeon,a tailor,a miner,a
sailor,a locksmith,a chemist,a postman,a translator,a jeweller,a farmer,a watchmaker,an actor,a
librarian,a carpenter,a diver,a butcher,an engraver,a lawyer""",
    "instrument": """the violin,the harp,the trumpet,the piano,the flute,the cello,the guitar,the
drums,the organ,the clarinet,the accordion,the banjo,the oboe,the zither,the lute,the horn,the
mandolin,the bassoon,the viola,the saxophone""",
    "product": """bicycles,lamps,carpets,tyres,pencils,clocks,ovens,boots,mirrors,ropes,umbrellas,
toys,tractors,bottles,brushes,candles,pumps,locks,sails,violins,helmets,scales,kettles,engines""",
    "material": """granite,timber,steel,concrete,brick,marble,limestone,glass,sandstone,iron,
aluminium,slate,copper,clay,basalt,oak,bamboo,bronze,zinc,flint""",
}

_NEUTRAL = """
Little else is known about this.
Much has been written about it since.
The records of that time were lost in a fire.
Visitors often ask about it.
A local newspaper once told the story.
Not everyone agrees with this account.
An old photograph shows the scene.
There is a small exhibition about it.
""".strip().splitlines()


_SENTENCE = re.compile(r"[^/.?]+[.?]")


class _Fact(NamedTuple):
    kind: str
    wordings: list[str]
    questions: list[str]


class _Said(NamedTuple):
    """A fact of a subject, as a passage has it."""

    fact: int
    sentence: str
    answer: str


def rows(name: str) -> list[dict[str, Any]]:
    """Returns the rows of a set, one of ``SIZES``."""
    author = _Author(name)
    return [row for _ in range(_PASSAGES[name]) for row in author.passage()]


class _Author:
    """Writes the passages of one set."""

    def __init__(self, name: str) -> None:
        self._choose = Chooser(f"passages {name}")
        self._facts = {topic: _parse(text, name) for topic, text in _FACTS.items()}
        self._neutral = part(_NEUTRAL, name)
        self._first_names = part(words.FIRST_NAMES, name)
        self._surnames = part(words.SURNAMES, name)
        self._stems = part(words.STEMS, name)
        self._shared = part(words.SHARED_NAMES, name)
        self._answers: dict[str, Callable[[], str]] = {
            "person": self._person,
            "place": self._one_of(part(words.PLACES, name)),
            "year": lambda: str(self._choose.number(1820, 2015)),
            "number": lambda: str(self._choose.number(20, 9000)),
            "height": lambda: f"{self._choose.number(9, 320)} metres",
            **{kind: self._one_of(part(_words(text), name)) for kind, text in _KINDS.items()},
        }

    def passage(self) -> list[dict[str, Any]]:
        """Returns the questions about a new passage."""
        topic = self._choose.one(sorted(self._facts))
        facts = self._facts[topic]
        subjects = self._two_subjects(topic)
        said = {subject: self._say(subject, facts) for subject in subjects}
        sentences = [fact.sentence for facts in said.values() for fact in facts]
        sentences.insert(self._choose.number(1, len(sentences)), self._choose.one(self._neutral))
        context = " ".join(sentence[0].upper() + sentence[1:] for sentence in sentences)
        asked: dict[str, dict[str, Any]] = {}
        while len(asked) < _QUESTIONS:
            row = self._ask(self._choose.one(subjects), said, facts, context)
            asked.setdefault(row["question"], row)
        return list(asked.values())

    def _say(self, subject: str, facts: list[_Fact]) -> list[_Said]:
        """Three or four facts of a subject, in any order."""
        chosen = self._choose.some(range(len(facts)), self._choose.number(3, 4))
        said = []
        for number in chosen:
            answer = self._answers[facts[number].kind]()
            wording = self._choose.one(facts[number].wordings)
            said.append(_Said(number, wording.format(s=subject, a=answer), answer))
        return said

    def _ask(
        self, subject: str, said: dict[str, list[_Said]], facts: list[_Fact], context: str
    ) -> dict[str, Any]:
        of_subject = {one.fact: one for one in said[subject]}
        silent = sorted(set(range(len(facts))) - of_subject.keys())
        number = self._choose.one(silent if self._choose.chance(0.2) else sorted(of_subject))
        question = self._choose.one(facts[number].questions).format(s=subject)
        answers: dict[str, list[Any]] = {"text": [], "answer_start": []}
        if number in of_subject:
            one = of_subject[number]
            sentence = one.sentence[0].upper() + one.sentence[1:]
            start = context.index(sentence) + sentence.index(one.answer)
            answers = {"text": [one.answer], "answer_start": [start]}
        name = hashlib.sha256(f"{context}{question}".encode()).hexdigest()[:16]
        return {"id": name, "context": context, "question": question, "answers": answers}

    def _two_subjects(self, topic: str) -> list[str]:
        first, second = self._subject(topic), self._subject(topic)
        while first == second:
            second = self._subject(topic)
        return [first, second]

    def _subject(self, topic: str) -> str:
        if topic == "person":
            return self._person()
        if topic == "firm":
            stem = self._choose.one(self._stems)
            return f"{stem} {self._choose.one(['Works', 'Industries', 'Brothers', 'Company'])}"
        kind = self._choose.one(["Tower", "Hall", "Theatre"])
        return f"the {self._choose.one(self._shared)} {kind}"

    def _person(self) -> str:
        return f"{self._choose.one(self._first_names)} {self._choose.one(self._surnames)}"

    def _one_of(self, kinds: list[str]) -> Callable[[], str]:
        return lambda: self._choose.one(kinds)


def _words(text: str) -> list[str]:
    return [" ".join(word.split()) for word in text.split(",")]


def _parse(text: str, name: str) -> list[_Fact]:
    """The facts of a topic, with the wordings of one set."""
    wordings = slice(*_WORDINGS[name])
    facts = []
    for block in text.strip().split("\n\n"):
        kind, _, rest = block.partition("\n")
        sentences = [found.strip() for found in _SENTENCE.findall(" ".join(rest.split()))]
        said = [sentence for sentence in sentences if sentence.endswith(".")]
        asked = [sentence for sentence in sentences if sentence.endswith("?")]
        facts.append(_Fact(kind, said[wordings], asked[wordings]))
    return facts
