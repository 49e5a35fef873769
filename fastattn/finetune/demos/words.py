"""Names, and the choice among words: the same on every machine, and no word in two sets."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")

SETS = ("train", "validation", "test")
# Where the share of each set ends.
_ENDS = {"train": 0.6, "validation": 0.75, "test": 1.0}


def _list(text: str) -> list[str]:
    return text.split()


FIRST_NAMES = _list("""
Aaron Abigail Adela Agnes Alan Albert Alice Amara Amelia Anders Andrea Anita Anton Arthur Astrid
Barbara Beatrice Benedict Bianca Boris Brenda Camille Carl Carmen Cecilia Chloe Clara Colin Conrad
Daniel Daria Deborah Dmitri Dolores Edgar Edith Elena Elias Emma Emil Erik Esther Eva Fatima Felix
Fiona Frank Freya Gabriel Gerald Gloria Greta Gustav Hana Hannah Harold Hassan Heidi Helen Henrik
Hugo Ibrahim Igor Ines Ingrid Irene Ivan Jacob James Jana Javier Joan Johanna Jonas Joseph Judith
Julia Karim Karl Kate Keiko Kenji Klaus Laura Leah Leo Lena Linda Louis Lucia Lukas Magnus Malik
Marcus Maria Martha Matteo Maya Miguel Mina Mira Naomi Natalie Nina Noah Nora Olga Oliver Omar
Oscar Pablo Patricia Paul Pedro Petra Philip Priya Rachel Rahul Ralph Ramona Rebecca Robert Rosa
Ruth Samir Sandra Sara Sergei Silvia Simon Sofia Stefan Stella Susan Sven Tamara Teresa Thomas Tim
Ursula Vera Viktor Walter Wanda Yara Yusuf Zara
""")

SURNAMES = _list("""
Abbott Adler Ahmed Akerman Albrecht Almeida Andersson Archer Baker Banerjee Barlow Bauer Becker
Bergman Bianchi Bishop Blake Bloom Bondarenko Brandt Brooks Butler Byrne Campos Carver Castillo
Chan Chen Christie Cohen Cole Cook Cooper Costa Cross Dahl Delgado Dietrich Dixon Doyle Draper
Dubois Dunn Eklund Ellison Engel Farmer Feld Ferrari Fischer Fisher Fletcher Flynn Forster Fox
Fraser Frost Garcia Gibbs Gill Gordon Graves Greene Gruber Gupta Haas Hale Hansen Harper Hayes
Herrera Hoffman Holm Horvath Hughes Hunter Ibsen Ito Ivanov Jansen Jensen Johansson Kaplan Keller
Kelly Khan Kim Klein Knight Kovacs Kowalski Kruger Lambert Larsen Laurent Lehmann Lindgren Lopez
Lund Marsh Martens Mason Mehta Mendoza Meyer Miller Moreau Moretti Morgan Murphy Nagy Nakamura
Navarro Nielsen Novak Nowak Olsen Ortega Osborne Page Palmer Park Parker Patel Pereira Petrov Pike
Popescu Porter Potter Price Quinn Ramos Rasmussen Reed Reyes Ricci Richter Rivera Romano Rossi
Roth Rowe Ryan Sanders Santos Sato Sawyer Schmidt Shah Shaw Singh Skinner Slater Soto Steiner
Stone Suzuki Svensson Tanaka Taylor Thorne Torres Tucker Turner Vargas Vogel Wagner Walker Wallace
Walsh Wang Weaver Weber West Wolf Wood Wright Yamada Young Zhang Zimmerman
""")

PLACES = _list("""
Aberdeen Accra Adelaide Aleppo Almaty Amman Ankara Antwerp Arusha Athens Auckland Baku Bamako
Bangkok Barcelona Basel Beirut Belfast Bergen Bogota Bologna Bombay Bordeaux Brasilia Bremen
Bristol Brno Bucharest Budapest Cairo Calgary Canberra Caracas Cardiff Casablanca Chengdu Chicago
Cologne Copenhagen Cordoba Cork Dakar Damascus Delhi Detroit Dhaka Doha Dresden Dubai Dublin
Dundee Edinburgh Essen Fresno Geneva Genoa Ghent Glasgow Graz Guangzhou Hamburg Hanoi Harare
Havana Helsinki Hobart Istanbul Jakarta Johannesburg Kabul Kampala Karachi Kathmandu Khartoum
Kingston Kinshasa Krakow Kyoto Lagos Lahore Leeds Leipzig Lima Lisbon Liverpool Ljubljana Luanda
Lusaka Lyon Madrid Malaga Managua Manila Maputo Marseille Melbourne Memphis Milan Minsk Mombasa
Montreal Mumbai Munich Nairobi Nantes Naples Nice Nottingham Odessa Osaka Oslo Ottawa Palermo
Perth Porto Poznan Prague Quebec Quito Rabat Riga Rome Rotterdam Salzburg Santiago Sarajevo Seoul
Seville Shanghai Split Stockholm Strasbourg Stuttgart Surabaya Tallinn Tampere Tangier Tbilisi
Tehran Tirana Tokyo Toledo Toronto Toulouse Trieste Tripoli Tucson Tunis Turin Utrecht Valencia
Vancouver Vienna Vilnius Warsaw Winnipeg Wuhan Yerevan Zagreb Zurich
""")

# Names that people, organisations and places have alike: only the sentence tells which it is.
SHARED_NAMES = _list("""
Alexandria Arlington Ashton Augusta Austin Beaumont Bedford Berkeley Bradford Brooklyn Burton
Camden Carlisle Carson Charlotte Chelsea Chester Clifton Clinton Columbus Dallas Dalton Denver
Devon Douglas Durham Eugene Florence Franklin Georgia Halifax Hamilton Harrison Hastings Houston
Jackson Jordan Kent Lancaster Lincoln Logan Madison Marion Marshall Milton Monroe Montgomery
Nelson Newton Orlando Paris Phoenix Preston Raleigh Regina Salisbury Savannah Sheffield Stafford
Sydney Trent Troy Vernon Victoria Wakefield Warren Warwick Washington Wellington Winchester
Winston York
""")

# First words of organisations.
STEMS = _list("""
Acorn Albion Alpine Amber Apex Arbor Argon Atlas Aurora Bluebird Borealis Boreas Cascade Cedar
Citadel Cobalt Comet Coral Crescent Crown Cypress Delta Diamond Eagle Eastgate Echo Ember Equinox
Everest Falcon Fathom Fjord Foundry Frontier Garnet Glacier Golden Granite Harbour Harvest Helios
Heron Horizon Indigo Juniper Keystone Kestrel Lantern Laurel Legacy Lighthouse Lotus Magnolia
Maple Meridian Mosaic Neptune Nimbus Northstar Nova Oak Obsidian Olympia Onyx Opal Orchid Orion
Osprey Pacific Palisade Pegasus Pinnacle Pioneer Polaris Prairie Prism Quantum Quartz Raven
Redwood Ridge Sable Saffron Sapphire Saturn Sequoia Sierra Silver Skylark Solaris Sparrow Sterling
Summit Sycamore Tamarind Tempest Titan Topaz Trident Triton Tundra Umbra Union Vanguard Vega
Velvet Vertex Vista Willow Yellowstone Zenith Zephyr
""")


def part(words: Sequence[T], name: str) -> list[T]:
    """Returns the words of one set: of 20 words 12 to train on, 3 to choose on, 5 to test on."""
    ordered = sorted(words, key=lambda word: hashlib.sha256(repr(word).encode()).hexdigest())
    before = SETS.index(name) - 1
    start = 0 if before < 0 else round(_ENDS[SETS[before]] * len(words))
    return ordered[start : round(_ENDS[name] * len(words))]


class Chooser:
    """Chooses among words. Built on ``random()`` alone, which is the same in every Python."""

    def __init__(self, seed: str) -> None:
        self._random = random.Random(seed)

    def chance(self, probability: float) -> bool:
        """Returns whether something of this probability happens."""
        return self._random.random() < probability

    def number(self, low: int, high: int) -> int:
        """Returns a whole number from low to high, both included."""
        return low + int(self._random.random() * (high - low + 1))

    def one(self, words: Sequence[T]) -> T:
        """Returns one of the words."""
        return words[self.number(0, len(words) - 1)]

    def some(self, words: Sequence[T], count: int) -> list[T]:
        """Returns different ones of the words, in any order."""
        left = list(words)
        return [left.pop(self.number(0, len(left) - 1)) for _ in range(count)]
