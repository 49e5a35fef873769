"""The sentences of the grammar: right German, held-out combinations, the same everywhere."""

from __future__ import annotations

import hashlib

import pytest

from fastattn.finetune.demos.english_german import Pair, make_pairs

SIZES = {"train": 1_000, "validation": 40, "test": 60}


@pytest.fixture(scope="module")
def sets() -> dict[str, list[Pair]]:
    return make_pairs(**SIZES, seed=0)


def test_different_sentences_as_many_as_asked_for(sets: dict[str, list[Pair]]) -> None:
    assert {name: len(pairs) for name, pairs in sets.items()} == SIZES
    sources = [pair.source for pairs in sets.values() for pair in pairs]
    assert len(set(sources)) == len(sources)


def test_combinations_are_held_out(sets: dict[str, list[Pair]]) -> None:
    trained = {x for pair in sets["train"] for x in pair.combinations}
    for name in ("validation", "test"):
        assert all(pair.combinations - trained for pair in sets[name])
    words = {word.strip(".,?") for pair in sets["train"] for word in pair.target.split()}
    new = {word.strip(".,?") for pair in sets["test"] for word in pair.target.split()} - words
    assert len(new) <= 5  # the words themselves are known


def test_the_same_sentences_on_every_machine(sets: dict[str, list[Pair]]) -> None:
    text = "\n".join(f"{p.source}\t{p.target}" for pairs in sets.values() for p in pairs)
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "73223db04a1425c4"
    assert make_pairs(**SIZES, seed=1) != sets


# Written by hand: what the grammar must say where it says this in English.
TRANSLATIONS = {
    "She opens my lamp.": "Sie macht meine Lampe auf.",
    "He says that I will open the chair.": "Er sagt, dass ich den Stuhl aufmachen werde.",
    "She laughs because she opened our flower.": "Sie lacht, weil sie unsere Blume aufgemacht hat.",
    "Does she open these balls?": "Macht sie diese Bälle auf?",
    "We did not buy a car.": "Wir haben kein Auto gekauft.",
    "He does not see the lamp.": "Er sieht die Lampe nicht.",
    "He must not see the keys.": "Er darf die Schlüssel nicht sehen.",
    "Next year we will see my ship.": "Nächstes Jahr werden wir mein Schiff sehen.",
    "I forget a good hat.": "Ich vergesse einen guten Hut.",
    "They lose my expensive window.": "Sie verlieren mein teures Fenster.",
    "She will open a map next to the school.": "Sie wird eine Karte neben der Schule aufmachen.",
    "He laughs because this brother brings these doors every day.": (
        "Er lacht, weil dieser Bruder jeden Tag diese Türen mitbringt."
    ),
    "My brother gives the sisters the strange newspapers behind the shop today.": (
        "Mein Bruder gibt heute den Schwestern die seltsamen Zeitungen hinter dem Laden."
    ),
    "This baker gives the white dogs his book in the kitchen.": (
        "Dieser Bäcker gibt den weißen Hunden sein Buch in der Küche."
    ),
}


def test_german_as_it_should_be() -> None:
    found = {pair.source: pair.target for pair in make_pairs(6_000, 1, 1, seed=0)["train"]}
    assert {source: found[source] for source in TRANSLATIONS} == TRANSLATIONS
