"""The words that the types know, by language. Months, weekdays and words like "tomorrow" come from dateparser's data."""

from __future__ import annotations

import msgspec


class DateWords(msgspec.Struct, frozen=True):
    """Words round the names of days. All lower case and without accents."""

    this: frozenset[str] = frozenset()  # "this Friday": the first one from today on, today included
    next: frozenset[str] = frozenset()  # "next Friday": the one of next week
    before: frozenset[str] = frozenset()  # words that add nothing: "on Friday", "the 20th"
    ordinal: str = r"\.?"  # what may follow the number of a day
    at: frozenset[str] = frozenset()  # between a date and a time
    soon: tuple[tuple[str, int], ...] = ()  # words for a day, as days from today, beside dateparser's
    inside: tuple[str, ...] = ()  # "in 3 days", "3" as (\d{1,3}), with the words of `units` behind it
    units: tuple[tuple[str, int], ...] = ()  # in days


class TimeWords(msgspec.Struct, frozen=True):
    """Words of times of day. All lower case and without accents."""

    before: frozenset[str] = frozenset()
    noon: frozenset[str] = frozenset()
    midnight: frozenset[str] = frozenset()
    hour: frozenset[str] = frozenset()  # behind an hour of 24: "19 Uhr", "19h"
    morning: frozenset[str] = frozenset()  # behind an hour of 12
    evening: frozenset[str] = frozenset()


def _set(text: str) -> frozenset[str]:
    return frozenset(part.strip() for part in text.split("|"))


DATES = {
    "en": DateWords(
        this=_set("this|coming"),
        next=_set("next"),
        before=_set("on|the|of"),
        ordinal="(?:st|nd|rd|th)?",
        at=_set("at|,|, at|from|@"),
        soon=(("tonight", 0), ("the day after tomorrow", 2)),
        inside=(r"in (\d{1,3}) (\w+)", r"(\d{1,3}) (\w+) from (?:now|today)"),
        units=(("day", 1), ("days", 1), ("week", 7), ("weeks", 7)),
    ),
    "de": DateWords(
        this=_set("dieser|diesen|diesem|kommender|kommenden|kommendem"),
        next=_set("nachster|nachsten|nachstem"),
        before=_set("am|der|den|dem|vom"),
        at=_set("um|,|, um|ab|gegen"),
        soon=(("heute abend", 0),),
        inside=(r"in (\d{1,3}) (\w+)",),
        units=(("tag", 1), ("tagen", 1), ("woche", 7), ("wochen", 7)),
    ),
    "es": DateWords(
        this=_set("este"),
        next=_set("proximo|que|viene"),
        before=_set("el|de|del|dia"),
        ordinal="(?:o|°)?",
        at=_set("a|,|, a|desde"),
        soon=(("esta noche", 0), ("pasado manana", 2)),
        inside=(r"(?:en|dentro de) (\d{1,3}) (\w+)",),
        units=(("dia", 1), ("dias", 1), ("semana", 7), ("semanas", 7)),
    ),
    "fr": DateWords(
        this=_set("ce"),
        next=_set("prochain"),
        before=_set("le|de|du"),
        ordinal="(?:er)?",
        at=_set("a|,|, a"),
        soon=(("ce soir", 0), ("apres-demain", 2), ("apres demain", 2)),
        inside=(r"(?:dans|d'ici) (\d{1,3}) (\w+)",),
        units=(("jour", 1), ("jours", 1), ("semaine", 7), ("semaines", 7)),
    ),
}

TIMES = {
    "en": TimeWords(
        before=_set("at|@|from"),
        noon=_set("noon|midday|12 noon"),
        midnight=_set("midnight|12 midnight"),
        hour=_set("h|hrs|hours"),
        morning=_set("am|a.m.|a.m|in the morning|o'clock in the morning"),
        evening=_set("pm|p.m.|p.m|in the evening|in the afternoon|at night|o'clock in the evening"),
    ),
    "de": TimeWords(
        before=_set("um|ab|gegen"),
        noon=_set("mittag|mittags|12 uhr mittags"),
        midnight=_set("mitternacht"),
        hour=_set("h|uhr"),
        morning=_set("uhr morgens|uhr fruh|uhr vormittags|morgens|fruh"),
        evening=_set("uhr abends|uhr nachmittags|abends|nachmittags"),
    ),
    "es": TimeWords(
        before=_set("a las|a la|las|la|a"),
        noon=_set("mediodia|al mediodia"),
        midnight=_set("medianoche|a medianoche"),
        hour=_set("h|hs|horas"),
        morning=_set("de la manana|am|a.m.|a. m."),
        evening=_set("de la tarde|de la noche|pm|p.m.|p. m."),
    ),
    "fr": TimeWords(
        before=_set("a|vers"),
        noon=_set("midi|12h midi"),
        midnight=_set("minuit"),
        hour=_set("h|heures|heure"),
        morning=_set("h du matin|heures du matin|du matin"),
        evening=_set("h du soir|heures du soir|du soir|de l'apres-midi|heures de l'apres-midi"),
    ),
}


def _numbers(words: str, tens: str) -> dict[str, int]:
    """Words for 1, 2, 3, ... and for 20, 30, ...; those for one number are joined by a slash."""
    counted = {word: number for number, group in enumerate(words.split(), 1) for word in group.split("/")}
    counted |= {word: 10 * number for number, group in enumerate(tens.split(), 2) for word in group.split("/")}
    return {word.replace("-", " "): number for word, number in counted.items()}


NUMBERS = {
    "en": _numbers(
        "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
        "eighteen nineteen",
        "twenty thirty forty fifty",
    ),
    "de": _numbers(
        "ein/eine/eins/einen zwei drei vier fünf sechs sieben acht neun zehn elf zwölf dreizehn vierzehn fünfzehn sechzehn "
        "siebzehn achtzehn neunzehn",
        "zwanzig dreissig vierzig fünfzig",
    ),
    "es": _numbers(
        "uno/una/un dos tres cuatro cinco seis siete ocho nueve diez once doce trece catorce quince dieciséis diecisiete "
        "dieciocho diecinueve",
        "veinte treinta cuarenta cincuenta",
    ),
    "fr": _numbers(
        "un/une deux trois quatre cinq six sept huit neuf dix onze douze treize quatorze quinze seize dix-sept dix-huit "
        "dix-neuf",
        "vingt trente quarante cinquante",
    ),
}

GUESTS = {
    "en": (
        ("party of", "a party of", "table for", "a table for", "for", "group of", "a group of"),
        ("people", "persons", "person", "guests", "guest", "pax", "diners", "adults", "of us"),
    ),
    "de": (
        ("für", "tisch für", "ein tisch für", "einen tisch für", "wir sind"),
        ("personen", "person", "leute", "gäste", "gast", "erwachsene"),
    ),
    "es": (
        ("para", "mesa para", "una mesa para", "somos"),
        ("personas", "persona", "comensales", "invitados", "adultos"),
    ),
    "fr": (
        ("pour", "table pour", "une table pour", "nous sommes", "nous serons"),
        ("personnes", "personne", "couverts", "convives", "adultes"),
    ),
}

ORDINALS = {
    "first": "1st", "second": "2nd", "third": "3rd", "fourth": "4th", "fifth": "5th", "sixth": "6th", "seventh": "7th",
    "eighth": "8th", "ninth": "9th", "tenth": "10th", "eleventh": "11th", "twelfth": "12th",
}  # fmt: skip

_UNITS = ("apartment", "unit", "suite", "number")

# What a word of an address may stand for; nothing at all where it adds nothing.
ABBREVIATIONS: dict[str, dict[str, tuple[str, ...]]] = {
    "en": {
        "st": ("street", "saint"), "str": ("street",), "ave": ("avenue",), "av": ("avenue",), "blvd": ("boulevard",),
        "rd": ("road",), "dr": ("drive", "doctor"), "ln": ("lane",), "ct": ("court",), "pl": ("place",),
        "sq": ("square",), "ter": ("terrace",), "terr": ("terrace",), "pkwy": ("parkway",), "hwy": ("highway",),
        "cir": ("circle",), "crt": ("court",), "cres": ("crescent",), "gdns": ("gardens",), "mt": ("mount",),
        "ft": ("fort",), "apt": ("apartment",), "ste": ("suite",), "bldg": ("building",), "fl": ("floor",),
        "rm": ("room",), "#": _UNITS, "no": ("number",), "n": ("north",), "s": ("south",), "e": ("east",),
        "w": ("west",), "ne": ("northeast",), "nw": ("northwest",), "se": ("southeast",), "sw": ("southwest",),
    },
    "de": {
        "str": ("strasse",), "pl": ("platz",), "nr": (), "hausnummer": (), "st": ("sankt",), "dr": ("doktor",),
        "whg": ("wohnung",), "og": ("obergeschoss",), "eg": ("erdgeschoss",),
    },
    "es": {
        "c": ("calle",), "cl": ("calle",), "av": ("avenida",), "avd": ("avenida",), "avda": ("avenida",),
        "pza": ("plaza",), "pl": ("plaza",), "plza": ("plaza",), "ps": ("paseo",), "po": ("paseo",), "pso": ("paseo",),
        "ctra": ("carretera",), "no": (), "num": (), "numero": (), "n": (), "sta": ("santa",), "sto": ("santo",),
        "dcha": ("derecha",), "izq": ("izquierda",), "izda": ("izquierda",), "dr": ("doctor",),
    },
    "fr": {
        "av": ("avenue",), "ave": ("avenue",), "bd": ("boulevard",), "bld": ("boulevard",), "blvd": ("boulevard",),
        "r": ("rue",), "pl": ("place",), "st": ("saint",), "ste": ("sainte",), "rte": ("route",), "imp": ("impasse",),
        "all": ("allee",), "fg": ("faubourg",), "fbg": ("faubourg",), "ch": ("chemin",), "sq": ("square",),
        "dr": ("docteur",), "gal": ("general",), "bat": ("batiment",), "apt": ("appartement",), "etg": ("etage",),
    },
}  # fmt: skip

STATES = {
    "AL": "Alabama", "AK": "Alaska", "AZ": "Arizona", "AR": "Arkansas", "CA": "California", "CO": "Colorado",
    "CT": "Connecticut", "DE": "Delaware", "FL": "Florida", "GA": "Georgia", "HI": "Hawaii", "ID": "Idaho",
    "IL": "Illinois", "IN": "Indiana", "IA": "Iowa", "KS": "Kansas", "KY": "Kentucky", "LA": "Louisiana", "ME": "Maine",
    "MD": "Maryland", "MA": "Massachusetts", "MI": "Michigan", "MN": "Minnesota", "MS": "Mississippi", "MO": "Missouri",
    "MT": "Montana", "NE": "Nebraska", "NV": "Nevada", "NH": "New Hampshire", "NJ": "New Jersey", "NM": "New Mexico",
    "NY": "New York", "NC": "North Carolina", "ND": "North Dakota", "OH": "Ohio", "OK": "Oklahoma", "OR": "Oregon",
    "PA": "Pennsylvania", "RI": "Rhode Island", "SC": "South Carolina", "SD": "South Dakota", "TN": "Tennessee",
    "TX": "Texas", "UT": "Utah", "VT": "Vermont", "VA": "Virginia", "WA": "Washington", "WV": "West Virginia",
    "WI": "Wisconsin", "WY": "Wyoming", "DC": "District of Columbia",
}  # fmt: skip
