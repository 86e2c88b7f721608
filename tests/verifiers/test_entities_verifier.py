import doctest
import importlib
import json
import pickle
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.verifiers import Sample, UserError, VerdictKind
from headrace.verifiers.entities.verifier import BUILT_IN, EntitiesVerifier

REFERENCE = "2026-11-18T10:00:00"  # a Wednesday


@pytest.fixture(scope="module")
def confined():
    verifier = EntitiesVerifier(reference_datetime=REFERENCE)
    yield verifier
    verifier.close()


OPEN = EntitiesVerifier(reference_datetime=REFERENCE, sandbox=False)


def field_result(verifier, kind, gold, found, locale="en_US", **row):
    row = {"answer": {"x": gold}, "fields": {"x": kind}, "locale": locale, **row}
    verdict = verifier.verify(Sample(json.dumps({"x": found}), row))
    assert verdict.kind is not VerdictKind.INFRA_ERROR, verdict
    result = verdict.details["fields"]["x"]
    assert verdict.reward == float(result["passed"]) == float(verdict.kind is VerdictKind.PASS)
    return result["reason"]


DATES = [
    # as ISO and in numbers
    ("en_US", "2026-11-20", "2026-11-20", "match"),
    ("en_US", "2026-11-20", "2026/11/20", "match"),
    ("en_US", "2026-11-20", "2026-11-19", "wrong"),
    ("en_US", "2026-11-20", "2026-20-11", "not_understood"),
    ("en_US", "2026-11-20", "2026-11-20T19:00", "not_understood"),
    ("en_US", "2026-02-28", "2026-02-29", "not_understood"),
    ("en_US", "2026-11-20", "11/20/2026", "match"),
    ("en_US", "2026-11-20", "11/20/26", "match"),
    ("en_US", "2026-11-20", "11/20", "match"),
    ("en_US", "2026-11-20", "20/11/2026", "not_understood"),
    ("en_GB", "2026-11-20", "20/11/2026", "match"),
    ("en_GB", "2026-11-20", "11/20/2026", "not_understood"),
    ("en_US", "2026-12-01", "12/1/2026", "match"),
    ("en_US", "2026-12-01", "12-1-2026", "match"),
    ("en_US", "2026-12-01", "12-1", "ambiguous"),
    ("en_GB", "2026-12-01", "12/1/2026", "wrong"),
    ("de_DE", "2026-11-20", "20.11.2026", "match"),
    ("de_DE", "2026-11-20", "20.11.", "match"),
    ("de_DE", "2026-11-20", "20. 11. 2026", "match"),
    ("es_ES", "2026-11-20", "20/11/2026", "match"),
    ("fr_FR", "2026-11-20", "20/11/2026", "match"),
    ("fr_FR", "2026-11-20", "20-11-2026", "match"),
    # with a month's name
    ("en_US", "2026-11-20", "November 20, 2026", "match"),
    ("en_US", "2026-11-20", "Nov. 20th", "match"),
    ("en_US", "2026-11-20", "the 20th of November", "match"),
    ("en_US", "2026-11-20", "Friday, November 20", "match"),
    ("en_US", "2026-11-20", "Thursday, November 20", "contradiction"),
    ("en_US", "2027-11-17", "November 17", "match"),
    ("en_US", "2026-11-18", "November 18", "match"),
    ("en_US", "2026-11-20", "November 2026", "ambiguous"),
    ("en_US", "2026-11-20", "November", "not_understood"),
    ("en_US", "2028-02-29", "February 29", "match"),
    ("en_GB", "2026-11-20", "20 November 2026", "match"),
    ("de_DE", "2026-11-20", "20. November 2026", "match"),
    ("de_DE", "2026-11-20", "Freitag, den 20. November", "match"),
    ("de_DE", "2026-11-20", "am 20. Nov.", "match"),
    ("de_DE", "2027-03-01", "1. März", "match"),
    ("de_DE", "2027-03-01", "1. Maerz", "not_understood"),
    ("es_ES", "2026-11-20", "20 de noviembre de 2026", "match"),
    ("es_ES", "2026-11-20", "viernes 20 de noviembre", "match"),
    ("es_ES", "2026-12-01", "1º de diciembre", "match"),
    ("es_ES", "2027-03-02", "2 mar", "match"),
    ("fr_FR", "2026-11-20", "20 novembre 2026", "match"),
    ("fr_FR", "2026-12-01", "1er décembre", "match"),
    ("fr_FR", "2026-12-01", "le 1er decembre 2026", "match"),
    # relative
    ("en_US", "2026-11-20", "this Friday", "match"),
    ("en_US", "2026-11-20", "Friday", "match"),
    ("en_US", "2026-11-20", "on Friday", "match"),
    ("en_US", "2026-11-20", "THIS FRIDAY.", "match"),
    ("en_US", "2026-11-20", "Fri", "match"),
    ("en_US", "2026-11-18", "this Wednesday", "match"),
    ("en_US", "2026-11-27", "next Friday", "match"),
    ("en_US", "2026-11-20", "next Friday", "wrong"),
    ("en_US", "2026-11-27", "Friday next week", "match"),
    ("en_US", "2026-11-16", "Monday", "wrong"),
    ("en_US", "2026-11-23", "Monday", "match"),
    ("en_US", "2026-11-18", "today", "match"),
    ("en_US", "2026-11-18", "tonight", "match"),
    ("en_US", "2026-11-19", "tomorrow", "match"),
    ("en_US", "2026-11-20", "the day after tomorrow", "match"),
    ("en_US", "2026-11-17", "yesterday", "match"),
    ("en_US", "2026-11-21", "in 3 days", "match"),
    ("en_US", "2026-12-02", "in 2 weeks", "match"),
    ("en_US", "2026-11-21", "in 3 months", "not_understood"),
    ("de_DE", "2026-11-20", "diesen Freitag", "match"),
    ("de_DE", "2026-11-20", "am Freitag", "match"),
    ("de_DE", "2026-11-27", "nächsten Freitag", "match"),
    ("de_DE", "2026-11-27", "Freitag nächste Woche", "match"),
    ("de_DE", "2026-11-20", "übermorgen", "match"),
    ("de_DE", "2026-11-19", "morgen", "match"),
    ("de_DE", "2026-11-21", "in 3 Tagen", "match"),
    ("es_ES", "2026-11-20", "este viernes", "match"),
    ("es_ES", "2026-11-20", "el viernes", "match"),
    ("es_ES", "2026-11-27", "el próximo viernes", "match"),
    ("es_ES", "2026-11-27", "el viernes que viene", "match"),
    ("es_ES", "2026-11-19", "mañana", "match"),
    ("es_ES", "2026-11-20", "pasado mañana", "match"),
    ("es_ES", "2026-11-21", "dentro de 3 días", "match"),
    ("es_ES", "2026-11-24", "martes", "match"),
    ("fr_FR", "2026-11-20", "ce vendredi", "match"),
    ("fr_FR", "2026-11-27", "vendredi prochain", "match"),
    ("fr_FR", "2026-11-19", "demain", "match"),
    ("fr_FR", "2026-11-20", "après-demain", "match"),
    ("fr_FR", "2026-11-21", "dans 3 jours", "match"),
    ("fr_FR", "2026-11-20", "this Friday", "not_understood"),
    # several, or none
    ("en_US", "2026-11-20", "Friday or Saturday", "ambiguous"),
    ("en_US", "2026-11-20", "Friday/Saturday", "ambiguous"),
    ("en_US", "2026-11-20", "Friday, Saturday", "not_understood"),
    ("en_US", "2026-11-20", "Friday Friday", "not_understood"),
    ("en_US", "2026-11-20", "Friday and Saturday", "ambiguous"),
    ("en_US", "2026-11-20", "maybe Friday", "ambiguous"),
    ("en_US", "2026-11-20", "2026-11-20 or 2026-11-21", "ambiguous"),
    ("en_US", "2026-11-20", "2026-11-20, 2026-11-21", "not_understood"),
    ("en_US", "2026-11-20", "20 or 21 November 2026", "ambiguous"),
    ("en_US", "2026-11-20", "November 20 21", "ambiguous"),
    ("en_US", "2026-11-20", "November 20-21", "ambiguous"),
    ("en_US", "2026-11-20", "not Friday", "not_understood"),
    ("en_US", "2026-11-20", "any Friday", "not_understood"),
    ("en_US", "2026-11-20", "", "not_understood"),
    ("en_US", "2026-11-20", "99999-11-20", "not_understood"),
    ("en_US", "2026-11-20", "in 999 weeks", "wrong"),
    ("de_DE", "2026-11-20", "Freitag oder Samstag", "ambiguous"),
    ("de_DE", "2026-11-20", "Freitag und Samstag", "ambiguous"),
    ("es_ES", "2026-11-20", "viernes o sábado", "ambiguous"),
    ("fr_FR", "2026-11-20", "vendredi ou samedi", "ambiguous"),
]

TIMES = [
    ("en_US", "19:00", "7pm", "match"),
    ("en_US", "19:00", "7 PM", "match"),
    ("en_US", "19:00", "7:00 p.m.", "match"),
    ("en_US", "19:00", "at 7 p.m.", "match"),
    ("en_US", "19:00", "19:00", "match"),
    ("en_US", "19:00", "19:00:00", "match"),
    ("en_US", "19:00", "seven pm", "match"),
    ("en_US", "19:00", "7 in the evening", "match"),
    ("en_US", "19:00", "７pm", "match"),
    ("en_US", "19:00", "7am", "wrong"),
    ("en_US", "19:00", "7:00", "wrong"),
    ("en_US", "19:00", "7", "not_understood"),
    ("en_US", "19:00", "19", "not_understood"),
    ("en_US", "19:30", "7:30pm", "match"),
    ("en_US", "19:30", "7.30pm", "match"),
    ("en_US", "19:30", "7pm", "wrong"),
    ("en_US", "12:00", "12pm", "match"),
    ("en_US", "12:00", "noon", "match"),
    ("en_US", "00:00", "12am", "match"),
    ("en_US", "00:00", "midnight", "match"),
    ("en_US", "00:00", "24:00", "not_understood"),
    ("en_US", "13:00", "13pm", "not_understood"),
    ("en_US", "13:00", "13:60", "not_understood"),
    ("en_US", "23:00", "11 at night", "match"),
    ("en_US", "12:00", "12 at night", "not_understood"),
    ("en_US", "19:00", "7 or 8pm", "ambiguous"),
    ("en_US", "19:00", "7pm or 8pm", "ambiguous"),
    ("en_US", "19:00", "7-8pm", "ambiguous"),
    ("en_US", "19:00", "7pm/8pm", "ambiguous"),
    ("en_US", "19:00", "7pm, 8pm", "not_understood"),
    ("en_US", "19:00", "around 7pm", "not_understood"),
    ("en_US", "19:00", "7pm 8pm", "not_understood"),
    ("en_GB", "19:00", "7pm", "match"),
    ("de_DE", "19:00", "19 Uhr", "match"),
    ("de_DE", "19:30", "19.30 Uhr", "match"),
    ("de_DE", "19:30", "19 Uhr 30", "match"),
    ("de_DE", "19:00", "um 19 Uhr", "match"),
    ("de_DE", "19:00", "7 Uhr abends", "match"),
    ("de_DE", "07:00", "7 Uhr", "match"),
    ("de_DE", "19:00", "7 Uhr", "wrong"),
    ("de_DE", "19:00", "19 oder 20 Uhr", "ambiguous"),
    ("es_ES", "19:00", "a las 19:00", "match"),
    ("es_ES", "19:00", "a las 7 de la tarde", "match"),
    ("es_ES", "21:00", "las 9 de la noche", "match"),
    ("es_ES", "09:00", "9 de la mañana", "match"),
    ("es_ES", "12:00", "mediodía", "match"),
    ("es_ES", "19:00", "7 o 8 de la tarde", "ambiguous"),
    ("fr_FR", "19:00", "19h", "match"),
    ("fr_FR", "19:30", "19h30", "match"),
    ("fr_FR", "19:30", "19 h 30", "match"),
    ("fr_FR", "19:00", "à 19 heures", "match"),
    ("fr_FR", "19:00", "7h du soir", "match"),
    ("fr_FR", "15:00", "3 heures de l'après-midi", "match"),
    ("fr_FR", "12:00", "midi", "match"),
    ("fr_FR", "19:00", "19h ou 20h", "ambiguous"),
]

DATETIMES = [
    ("en_US", "2026-11-20T19:00", "2026-11-20T19:00:00", "match"),
    ("en_US", "2026-11-20T19:00", "2026-11-20 19:00", "match"),
    ("en_US", "2026-11-20T19:00", "this Friday at 7pm", "match"),
    ("en_US", "2026-11-20T19:00", "7pm this Friday", "match"),
    ("en_US", "2026-11-20T19:00", "7pm on Friday", "match"),
    ("en_US", "2026-11-20T19:00", "Friday, November 20, 2026, 7:00 PM", "match"),
    ("en_US", "2026-11-19T12:00", "tomorrow at noon", "match"),
    ("en_US", "2026-11-20T19:00", "2026-11-20", "not_understood"),
    ("en_US", "2026-11-20T19:00", "this Friday at 8pm", "wrong"),
    ("en_US", "2026-11-20T19:00", "Friday at 7pm or 8pm", "ambiguous"),
    ("en_US", "2026-11-20T19:00", "Friday or Saturday at 7pm", "ambiguous"),
    ("en_US", "2026-11-20T19:00", "2026-11-20T19:00Z", "wrong"),
    ("en_US", "2026-11-20T19:00", "2026-11-20T25:00", "not_understood"),
    ("de_DE", "2026-11-20T19:30", "Freitag um 19.30 Uhr", "match"),
    ("de_DE", "2026-11-20T19:30", "20.11.2026, 19:30 Uhr", "match"),
    ("es_ES", "2026-11-20T19:00", "el viernes a las 7 de la tarde", "match"),
    ("fr_FR", "2026-11-20T19:30", "vendredi à 19h30", "match"),
]

PARTIES = [
    ("en_US", 4, 4, "match"),
    ("en_US", 4, 4.0, "match"),
    ("en_US", 4, "4", "match"),
    ("en_US", 4, "four", "match"),
    ("en_US", 4, "party of four", "match"),
    ("en_US", 4, "4 people", "match"),
    ("en_US", 25, "twenty-five guests", "match"),
    ("en_US", 4, 5, "wrong"),
    ("en_US", 4, True, "wrong_kind"),
    ("en_US", 1, True, "wrong_kind"),
    ("en_US", 4, 4.5, "not_understood"),
    ("en_US", 4, "4 or 5", "not_understood"),
    ("en_US", 4, "4-5", "not_understood"),
    ("en_US", 4, "4, 5", "not_understood"),
    ("en_US", 4, "4 5", "not_understood"),
    ("en_US", 4, "two adults and two children", "not_understood"),
    ("en_US", 4, [4], "wrong_kind"),
    ("en_US", 4, [4, 5], "wrong_kind"),
    ("en_US", 4, -4, "not_understood"),
    ("en_US", 17, "seventeen", "match"),
    ("fr_FR", 17, "dix-sept", "match"),
    ("en_US", 4, "-four", "not_understood"),
    ("en_US", 4, None, "missing"),
    ("de_DE", 4, "vier Personen", "match"),
    ("de_DE", 5, "für fünf Personen", "match"),
    ("es_ES", 4, "cuatro personas", "match"),
    ("es_ES", 4, "mesa para cuatro", "match"),
    ("fr_FR", 4, "quatre personnes", "match"),
    ("fr_FR", 4, "pour quatre", "match"),
    ("fr_FR", 4, "four", "not_understood"),
]

PHONES = [
    ("en_US", "+12125550123", "(212) 555-0123", "match"),
    ("en_US", "+12125550123", "212.555.0123", "match"),
    ("en_US", "+12125550123", "1-212-555-0123", "match"),
    ("en_US", "+12125550123", "+1 212 555 0123", "match"),
    ("en_US", "+12125550123", 2125550123, "match"),
    ("en_US", "+12125550123", "212 555 0124", "wrong"),
    ("en_US", "+12125550123", "212-555-0123 ext. 5", "wrong"),
    ("en_US", "+12125550123 x5", "212-555-0123 ext. 5", "match"),
    ("en_US", "+12125550123", "212-555-0123 or 212-555-0124", "not_understood"),
    ("en_US", "+12125550123", "212-555-0123 / 212-555-0124", "not_understood"),
    ("en_US", "+12125550123", "212-555-0123, 212-555-0124", "not_understood"),
    ("en_US", "+12125550123", "1-800-FLOWERS", "not_understood"),
    ("en_US", "+12125550123", "555-0123 is my number", "not_understood"),
    ("en_US", "+12125550123", "12345", "not_understood"),
    ("en_GB", "+442079460123", "020 7946 0123", "match"),
    ("en_GB", "+442079460123", "+44 (0)20 7946 0123", "match"),
    ("de_DE", "+4930123456", "030/123456", "match"),
    ("de_DE", "+4930123456", "0049 30 123456", "match"),
    ("de_DE", "+4930123456", "030/123456/123457", "wrong"),
    ("es_ES", "+34912345678", "912 34 56 78", "match"),
    ("fr_FR", "+33123456789", "01 23 45 67 89", "match"),
    ("fr_FR", "+33123456789", "01.23.45.67.89", "match"),
    ("fr_FR", "+33123456789", "+39 06 1234 5678", "wrong"),
    ("en_US", "+12125550123", "011 44 20 7946 0123", "wrong"),
    ("en_US", "+12125550123", "tel. 212-555-0123", "match"),
    ("en_US", "+12125550123", "212-555-0123 +1", "not_understood"),
]

TEXTS = [
    ("en_US", "address", "12 Main Street, Springfield", "12 Main St., Springfield", "match"),
    ("en_US", "address", "12 Main Street, Springfield", "12 main st springfield", "match"),
    ("en_US", "address", "12 Main Street", "12 Main Avenue", "wrong"),
    ("en_US", "address", "12 Main Street", "14 Main Street", "wrong"),
    ("en_US", "address", "12 Main Street", "12 Main Street or 14 Main Street", "wrong"),
    ("en_US", "address", "12 Main Street", "12 Main Saint", "wrong"),
    ("en_US", "address", "12 Saint James Street", "12 St. James St.", "match"),
    (
        "en_US",
        "address",
        "5 W 42nd St, Apt 4B, New York, NY 10036",
        "5 West 42nd Street #4B, New York, New York 10036",
        "match",
    ),
    ("en_US", "address", "100 Fifth Ave", "100 5th Avenue", "match"),
    ("en_US", "address", "100 Oak Dr, Salem, OR", "100 Oak Drive, Salem, Oregon", "match"),
    ("en_US", "address", "100 Oak St NE", "100 Oak Street Northeast", "match"),
    ("en_US", "address", "12 Main Street", "", "not_understood"),
    ("en_US", "address", "12 Main Street", "Main Street 12", "wrong"),
    ("en_GB", "address", "10 Downing Street, London", "10 Downing St, London", "match"),
    ("de_DE", "address", "Hauptstraße 5, 10115 Berlin", "Hauptstr. 5, 10115 Berlin", "match"),
    ("de_DE", "address", "Hauptstraße 5", "Hauptstrasse Nr. 5", "match"),
    ("de_DE", "address", "Hauptstraße 5", "Hauptplatz 5", "wrong"),
    ("es_ES", "address", "Calle Mayor 3, Madrid", "C/ Mayor, nº 3, Madrid", "match"),
    ("es_ES", "address", "Avenida de América 3", "Avda. de America 3", "match"),
    ("fr_FR", "address", "12 boulevard Saint-Michel", "12 bd St Michel", "match"),
    ("fr_FR", "address", "12 avenue Foch", "12 av. Foch", "match"),
    ("en_US", "insurance_provider", "Blue Cross Blue Shield", "BCBS", "match"),
    ("en_US", "insurance_provider", "Blue Cross Blue Shield", "Blue Cross and Blue Shield", "match"),
    ("en_US", "insurance_provider", "Blue Cross Blue Shield", "BCBS of Texas", "wrong"),
    ("en_US", "insurance_provider", "UnitedHealthcare", "United Healthcare Insurance Company", "match"),
    ("en_US", "insurance_provider", "Aetna", "Aetna Inc.", "match"),
    ("en_US", "insurance_provider", "Aetna", "Aetna or Cigna", "wrong"),
    ("en_US", "insurance_provider", "Aetna", "Aetna, Cigna", "wrong"),
    ("en_US", "insurance_provider", "Aetna", "Insurance", "not_understood"),
    ("de_DE", "insurance_provider", "Techniker", "Techniker Krankenkasse", "match"),
    ("en_US", "insurance_id", "XYZ-123-456", "xyz123456", "match"),
    ("en_US", "insurance_id", "XYZ-123-456", "XYZ 123 457", "wrong"),
    ("en_US", "insurance_id", "00123", 123, "wrong"),
    ("en_US", "insurance_id", "A123", "A123 or A124", "wrong"),
    ("en_US", "insurance_id", "A123", "A123/A124", "not_understood"),
    ("en_US", "text", "Window seat", "window  seat.", "match"),
    ("en_US", "text", "Window seat", "aisle seat", "wrong"),
    ("en_US", "text", "Window seat", "window seat or aisle seat", "wrong"),
    ("en_US", "free", "Straße", "STRASSE", "match"),
    ("en_US", "text", "7", 7, "match"),
    ("en_US", "text", "x", "...", "not_understood"),
    ("en_US", "text", "x", {"x": 1}, "wrong_kind"),
]
TABLES = {"date": DATES, "time": TIMES, "datetime": DATETIMES, "party_size": PARTIES, "phone": PHONES}
CASES = [(locale, kind, *rest) for kind, table in TABLES.items() for locale, *rest in table] + TEXTS


@pytest.mark.parametrize(("locale", "kind", "gold", "found", "reason"), CASES)
def test_a_value_is_judged_by_what_it_means(locale, kind, gold, found, reason):
    assert field_result(OPEN, kind, gold, found, locale) == reason


def test_the_confined_check_agrees_with_the_open_one(confined):
    samples = [
        Sample(json.dumps({"x": found}), {"answer": {"x": gold}, "fields": {"x": kind}, "locale": locale})
        for locale, kind, gold, found, _ in CASES
    ]
    assert len(samples) >= 150
    assert [verdict.details["fields"]["x"]["reason"] for verdict in confined.verify_many(samples)] == [
        reason for *_, reason in CASES
    ]


def test_a_phone_number_of_any_country_opens_no_file_under_confinement(confined):
    for code in ("+7 495", "+81 3", "+390", "+2348", "+99999", "+800", "+6839", "+878"):
        assert field_result(confined, "phone", "+12125550123", f"{code} 1234 5678") in ("wrong", "not_understood")


ROW = {
    "answer": {"day": "2026-11-20", "time": "19:00", "size": 4, "note": None},
    "fields": {"day": "date", "time": "time", "size": "party_size"},
}
RIGHT = {"day": "this Friday", "time": "7pm", "size": "four"}


@pytest.mark.parametrize(
    ("completion", "reason"),
    [
        (json.dumps(RIGHT), "match"),
        (json.dumps({**RIGHT, "note": None}), "match"),
        (json.dumps({**RIGHT, "other": None}), "match"),
        (f"Sure! Here it is:\n```json\n{json.dumps(RIGHT, indent=2)}\n```\nAnything else?", "match"),
        (f"The set {{1, 2}} is not it, {json.dumps(RIGHT)} is.", "match"),
        (json.dumps({**RIGHT, "note": "x"}), "extra_field"),
        (json.dumps({**RIGHT, "other": "x"}), "extra_field"),
        (json.dumps({**RIGHT, "size": 5}), "wrong_field"),
        (json.dumps({"day": "this Friday", "time": "7pm"}), "missing_field"),
        (json.dumps({**RIGHT, "size": [4]}), "wrong_kind"),
        (json.dumps({**RIGHT, "day": "Friday or Saturday"}), "ambiguous"),
        ('{"day": "2026-11-19", "day": "this Friday", "time": "7pm", "size": 4}', "duplicate_key"),
        (json.dumps(RIGHT) + json.dumps(RIGHT), "several_objects"),
        (json.dumps([RIGHT, {**RIGHT, "size": 5}]), "several_objects"),
        ('{"day": "2026-11-19", ' + json.dumps(RIGHT), "malformed"),
        (json.dumps(RIGHT)[:-1], "malformed"),
        ("this Friday at 7pm, four of us", "no_object"),
        ("", "no_object"),
        ("{" * 100_000, "too_large"),
        ("{" * 1000, "malformed"),
        ('{"a":' * 5000 + "1" + "}" * 5000, "malformed"),
        ('{"day": NaN}', "malformed"),
        ('{"size": 1000000000000000000000000000000}', "malformed"),
    ],
)
def test_the_one_object_of_a_text_is_judged(confined, completion, reason):
    verdict = confined.verify(Sample(completion, ROW))
    assert verdict.reason == reason
    assert verdict.reward == float(reason == "match")


def test_each_field_has_its_result():
    verdict = OPEN.verify(Sample(json.dumps({"day": "this Friday", "time": "8pm", "who": "me"}), ROW))
    assert verdict.details["fields"] == {
        "day": {"passed": True, "expected": "2026-11-20", "found": "2026-11-20", "reason": "match"},
        "time": {"passed": False, "expected": "19:00:00", "found": "20:00:00", "reason": "wrong"},
        "size": {"passed": False, "expected": "4", "found": None, "reason": "missing"},
        "note": {"passed": True, "expected": None, "found": None, "reason": "match"},
        "who": {"passed": False, "expected": None, "found": "me", "reason": "extra"},
    }


def test_partial_credit_is_the_share_of_fields():
    verifier = EntitiesVerifier(reference_datetime=REFERENCE, sandbox=False, partial_credit=True)
    verdict = verifier.verify(Sample(json.dumps({**RIGHT, "size": 5}), ROW))
    assert (verdict.kind, verdict.reward) == (VerdictKind.FAIL, 0.75)
    assert verifier.verify(Sample(json.dumps({**RIGHT, "a": 1, "b": 2, "c": 3, "d": 4}), ROW)).reward == 0.5


def test_further_fields_may_be_ignored():
    verifier = EntitiesVerifier(reference_datetime=REFERENCE, sandbox=False, extra_fields="ignore")
    assert verifier.verify(Sample(json.dumps({**RIGHT, "other": "x"}), ROW)).reason == "match"


def test_a_moment_with_an_offset_is_taken_to_the_time_zone(confined):
    zone = {"time_zone": "America/New_York"}
    assert field_result(confined, "datetime", "2026-11-20T19:00", "2026-11-21T00:00:00Z", **zone) == "match"
    assert field_result(confined, "datetime", "2026-11-20T19:00", "2026-11-20T19:00:00-05:00", **zone) == "match"
    assert field_result(confined, "datetime", "2026-11-20T19:00", "2026-11-20T19:00:00Z", **zone) == "wrong"
    assert field_result(confined, "datetime", "2026-11-20T19:00Z", "2026-11-20T20:00:00+01:00") == "match"


def test_today_is_the_time_zones_own():
    late = {"reference_datetime": "2026-11-19T03:00:00+00:00", "time_zone": "America/New_York"}
    assert field_result(OPEN, "date", "2026-11-18", "today", **late) == "match"
    assert field_result(OPEN, "date", "2026-11-19", "today", **{**late, "time_zone": "Europe/Paris"}) == "match"


def test_without_a_reference_nothing_relative_is_understood():
    verifier = EntitiesVerifier(sandbox=False)
    assert field_result(verifier, "date", "2026-11-20", "this Friday") == "not_understood"
    assert field_result(verifier, "date", "2026-11-20", "November 20, 2026") == "match"


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ({}, "`answer` is not an object"),
        ({"answer": {}}, "`answer` is not an object with"),
        ({"answer": {"a": "x"}, "fields": {"a": "dat"}}, "unknown type 'dat'; did you mean `date`"),
        ({"answer": {"a": "x"}, "fields": {"b": "date"}}, "'b', and `answer` has not"),
        ({"answer": {"a": "x"}, "fields": ["a"]}, "`fields` is list"),
        ({"answer": {"a": "Friday or Saturday"}, "fields": {"a": "date"}}, "is no date"),
        ({"answer": {"a": "12"}, "fields": {"a": "phone"}}, "is no phone"),
        ({"answer": {"a": [1]}}, "no text and no number"),
        ({"answer": {"a": "x"}, "locale": "xx_XX"}, "`locale` is 'xx_XX'"),
        ({"answer": {"a": "x"}, "locale": 7}, "`locale` is 7"),
        ({"answer": {"a": "x"}, "time_zone": "Mars/Base"}, "`time_zone` is 'Mars/Base'"),
        ({"answer": {"a": "x"}, "time_zone": 1}, "`time_zone` is int"),
        ({"answer": {"a": "x"}, "reference_datetime": "soon"}, "`reference_datetime` is 'soon'"),
    ],
)
def test_a_row_that_cannot_be_judged_is_named_and_never_scored(confined, row, complaint):
    assert complaint in confined.check_row(row)
    verdict = confined.verify(Sample('{"a": "x"}', row))
    assert (verdict.kind, verdict.reason) == (VerdictKind.INFRA_ERROR, "bad_row")


def test_a_good_row_has_no_fault(confined):
    assert confined.check_row(ROW) is None


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"locale": "english"}, "not of the form en_US"),
        ({"locales": ["qq_QQ"]}, "does not know the language"),
        ({"locale": "it_IT"}, "not one of `locales`"),
        ({"time_zone": "Mars"}, "`time_zone` is 'Mars'"),
        ({"reference_datetime": "soon"}, "`reference_datetime` is 'soon'"),
        ({"lokale": "en_US"}, "did you mean `locale`"),
    ],
)
def test_a_wrong_option_is_refused(options, complaint):
    with pytest.raises(UserError, match=complaint):
        EntitiesVerifier(sandbox=False, **options)


def test_a_further_locale_is_read_by_dateparsers_names():
    verifier = EntitiesVerifier(sandbox=False, locale="it_IT", locales=["it_IT"], reference_datetime=REFERENCE)
    assert field_result(verifier, "date", "2026-11-20", "20 novembre 2026", "it_IT") == "match"
    assert field_result(verifier, "date", "2026-11-19", "domani", "it_IT") == "match"


def test_a_missing_library_is_named_with_its_extra(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'headrace\[entities\]'"):
        EntitiesVerifier()


@pytest.fixture
def installed_package(tmp_path, monkeypatch):
    """A distribution with an entity type, as pip would leave it."""
    (tmp_path / "plates.py").write_text(
        "from headrace.verifiers.entities import EntityType, NotUnderstood\n"
        "class Plate(EntityType):\n"
        "    def canonical(self, text, context):\n"
        "        plate = text.replace(' ', '').upper()\n"
        "        if not plate.isalnum(): raise NotUnderstood\n"
        "        return plate\n"
    )
    metadata = tmp_path / "plates-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: plates\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[headrace.entity_types]\nplate = plates:Plate\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield metadata
    sys.modules.pop("plates", None)


@pytest.mark.usefixtures("installed_package")
def test_an_installed_package_adds_a_type():
    verifier = EntitiesVerifier()
    assert field_result(verifier, "plate", "B AB 12", "bab12") == "match"
    assert field_result(verifier, "plate", "B AB 12", "b ab 13") == "wrong"
    assert field_result(verifier, "plate", "B AB 12", "b/ab") == "not_understood"
    verifier.close()


@pytest.mark.parametrize(
    ("target", "complaint"), [("plates:None_", "cannot be loaded"), ("plates:NotUnderstood", "no subclass")]
)
def test_a_wrong_entry_point_is_refused(installed_package, target, complaint):
    (installed_package / "entry_points.txt").write_text(f"[headrace.entity_types]\nplate = {target}\n")
    with pytest.raises(UserError, match=complaint):
        EntitiesVerifier(sandbox=False)


def test_it_can_be_shipped(confined):
    copy = pickle.loads(pickle.dumps(confined))
    assert copy.verify(Sample(json.dumps(RIGHT), ROW)).reason == "match"
    copy.close()


WORDS = [
    "friday",
    "7pm",
    "or",
    "20",
    "november",
    "2026",
    "19:00",
    "at",
    ",",
    "/",
    "-",
    "4",
    "+1",
    "212",
    "555",
    "0123",
    "st",
]
TEXT = st.one_of(
    st.text(st.characters(codec=None), max_size=40), st.lists(st.sampled_from(WORDS), max_size=8).map(" ".join)
)


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(sorted(BUILT_IN)), TEXT, st.sampled_from(["en_US", "de_DE", "es_ES", "fr_FR"]))
def test_no_value_raises(kind, text, locale):
    golds = {
        "date": "2026-11-20",
        "time": "19:00",
        "datetime": "2026-11-20T19:00",
        "party_size": 4,
        "phone": "+12125550123",
    }
    field_result(OPEN, kind, golds.get(kind, "gold"), text, locale)


@settings(max_examples=100, deadline=None)
@given(st.text(st.characters(codec=None), max_size=200))
def test_no_completion_raises_or_passes(completion):
    verdict = OPEN.verify(Sample(completion, ROW))
    assert (verdict.kind, verdict.reward) == (VerdictKind.FAIL, 0.0)


@pytest.mark.parametrize("module", ["kinds", "objects", "texts", "verifier"])
def test_the_examples_in_the_docstrings_run(module):
    result = doctest.testmod(importlib.import_module(f"headrace.verifiers.entities.{module}"))
    assert result.attempted > 0
    assert result.failed == 0
