"""The instructions verifier: each instruction followed and not followed, and what rows and options it takes."""

import pickle
import socket
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.verifiers import Sample, UserError, VerdictKind
from headrace.verifiers.errors import WrongOption
from headrace.verifiers.instruction_checks import is_verb
from headrace.verifiers.instruction_table import IFBENCH, IFEVAL, INSTRUCTIONS
from headrace.verifiers.instructions import InstructionsVerifier, load_library, loose_variants


@pytest.fixture(scope="module")
def verifier():
    verifier = InstructionsVerifier()
    verifier.start()
    yield verifier
    verifier.close()


def verify(verifier, completion, *instructions):
    row = {
        "instruction_id_list": [each[0] for each in instructions],
        "kwargs": [each[1] if len(each) > 1 else {} for each in instructions],
    }
    return verifier.verify(Sample(completion, row))


_AFRICA = (
    "Zimbabwe Zambia Uganda Tunisia Togo Tanzania Sudan Somalia Seychelles Senegal Rwanda Nigeria Niger Namibia "
    "Mozambique Morocco Mauritius Mauritania Mali Malawi Madagascar Libya Liberia Lesotho Kenya Guinea Ghana "
    "Gambia Gabon Ethiopia Eswatini Eritrea Egypt Djibouti Congo Comoros Chad Cameroon Burundi Botswana Benin "
    "Angola Algeria Sao_Tome Sierra_Leone South_Africa South_Sudan Ivory_Coast Guinea-Bissau Equatorial_Guinea "
    "Cabo_Verde Burkina_Faso "
)
COUNTRIES = [name.replace("_", " ") for name in _AFRICA.split()]
CAPITALS = (
    "Reykjavik, Helsinki, Oslo, Tallinn, Stockholm, Riga, Moscow, Copenhagen, Vilnius, Minsk, Dublin, Berlin, Amsterdam,"
    " Warsaw, London, Brussels, Prague, Luxembourg, Paris, Vienna, Bratislava, Budapest, Vaduz, Chisinau, Bern,"
    " Ljubljana, Zagreb"
)
_FIRST_NAMES = (
    "Ann Bob Cid Dan Eve Fay Gus Hal Ida Jan Kim Leo Mia Ned Ola Pam Quin Ray Sue Tom Uma Val Wes Xia Yan Zoe"
)
NAMES = _FIRST_NAMES.split()
QUESTIONS = "\n\n".join(
    f"Question {number}. Which of these painters {'really ' * number}worked in Paris?\n"
    + "\n".join(f"{letter}) Painter {letter}" for letter in "ABCDE")
    for number in range(1, 5)
)
PRODUCTS = '"ProductID","Category","Brand","Price","Stock"\n' + "\n".join(
    f'{i},Tools,"Nut & Bolt",{i}.50,3' for i in range(14)
)
STUDENTS = "\n".join(
    '"' + '"\t"'.join(row) + '"'
    for row in [("StudentID", "Subject", "Grade", "Semester", "Score"), *[("1", "Art", "A", "S1", "90")] * 3]
)
CITIES = "ID,Country,City,Year,Count\n" + "\n".join(f"{i},Peru,Lima,2020,{i}" for i in range(7))
PALINDROMES = "level radar civic refer madam kayak rotor tenet solos stats"

# id -> (arguments, one that follows, one that does not)
EXAMPLES = {
    # IFEval
    "keywords:existence": ({"keywords": ["river", "C++"]}, "The River runs; C++ compiles.", "The river runs in C."),
    "keywords:frequency": ({"keyword": "sea", "frequency": 2, "relation": "at least"}, "Sea to sea.", "The sea."),
    "keywords:forbidden_words": ({"forbidden_words": ["bad"]}, "Badly done.", "That is Bad."),
    "keywords:letter_frequency": (
        {"letter": "Z", "let_frequency": 3, "let_relation": "less than"},
        "Zig zag.",
        "Zzz and z.",
    ),
    "language:response_language": (
        {"language": "de"},
        "Das ist ein schöner Tag im Garten.",
        "This is a fine day in the garden.",
    ),
    "length_constraints:number_sentences": (
        {"num_sentences": 3, "relation": "at least"},
        "Dr. No came. He saw. He left.",
        "Dr. No came at 5 p.m. He saw.",
    ),
    "length_constraints:number_paragraphs": ({"num_paragraphs": 2}, "One.\n***\nTwo.", "One.\n\nTwo."),
    "length_constraints:number_words": (
        {"num_words": 4, "relation": "less than"},
        "Only three words",
        "There are four words",
    ),
    "length_constraints:nth_paragraph_first_word": (
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "then"},
        "First.\n\nThen came two.",
        "First.\n\nAfter came two.",
    ),
    "detectable_content:number_placeholders": ({"num_placeholders": 2}, "Dear [name] of [city]", "Dear [name] of []"),
    "detectable_content:postscript": ({"postscript_marker": "P.S."}, "Bye.\nP.S. Write soon.", "Bye.\nP.S."),
    "detectable_format:number_bullet_lists": ({"num_bullets": 2}, "* one\n* two", "* one\n* two\n- three"),
    "detectable_format:constrained_response": ({}, "My answer is maybe.", "My answer is yes. My answer is no."),
    "detectable_format:number_highlighted_sections": ({"num_highlights": 2}, "*one* and **two**", "*one* and * *"),
    "detectable_format:multiple_sections": (
        {"section_spliter": "SECTION", "num_sections": 2},
        "SECTION 1\na\nSECTION 2\nb",
        "Section 1\na\nSECTION 2\nb",
    ),
    "detectable_format:json_format": ({}, '```json\n{"a": [1]}\n```', '{"a": NaN}'),
    "detectable_format:title": ({}, "<<A Day>>\nIt was.", "<< >>\nIt was."),
    "combination:two_responses": ({}, "Yes.\n******\nNo.", "Yes.\n******\nYes."),
    "combination:repeat_prompt": ({"prompt_to_repeat": "Name a fish."}, "Name a fish. A cod.", "Name a fish."),
    "startend:end_checker": ({"end_phrase": "That is all."}, "One. That is all.", "That is all. One."),
    "startend:quotation": ({}, '"All of it."', '"Not" all'),
    "change_case:capital_word_frequency": (
        {"capital_frequency": 2, "capital_relation": "at least"},
        "NASA met ESA today.",
        "NASA met Esa.",
    ),
    "change_case:english_capital": ({}, "THIS IS A LOUD ENGLISH SENTENCE.", "THIS IS A loud ENGLISH SENTENCE."),
    "change_case:english_lowercase": ({}, "this is a quiet english sentence.", "This is a quiet english sentence."),
    "punctuation:no_comma": ({}, "One and two.", "One, two."),
    # IFBench
    "count:word_count_range": ({"min_words": 2, "max_words": 3}, "Two words", "There are four words"),
    "count:unique_word_count": ({"N": 3}, "One two three", "One two one"),
    "count:conjunctions": ({"small_n": 2}, "This and that but no more.", "This and that and more."),
    "count:person_names": ({"N": 2}, "Emma met Liam.", "Emma met Bob."),
    "count:numbers": ({"N": 2}, "From 7 to 9.", "Only 7."),
    "count:punctuation": ({}, "One, two; three: what?! No! Yes? Done.", "One, two; three: what! Yes? Done."),
    "count:words_japanese": ({"N": 2}, "one 水 two 火", "one water two 火"),
    "count:pronouns": ({"N": 3}, "She told him about it.", "She told the man."),
    "count:keywords_multiple": (
        {f"keyword{i}": word for i, word in enumerate(("red", "oak", "sun", "cat", "jet"), 1)},
        "red " + "oak " * 2 + "sun " * 3 + "cat " * 5 + "jet " * 7,
        "red oak sun cat jet",
    ),
    "ratio:stop_words": ({"percentage": 30}, "Green frogs jump quickly over ponds", "It is in the house of the man"),
    "ratio:sentence_type": ({}, "It rains. It pours. Does it stop?", "It rains"),
    "ratio:sentence_balance": ({}, "It rains. Does it stop? It must!", "It rains. It pours."),
    "ratio:sentence_words": ({}, "Dogs bark. Cats purr. Owls hoot.", "Dogs bark. Dogs bark. Dogs bark."),
    "ratio:overlap": ({"reference_text": "the cat sat", "percentage": 100}, "the cat sat", "a dog ran off"),
    "words:alphabet": ({}, "Ants bite cats daily.", "Ants crawl."),
    "words:vowel": ({}, "A tall man sat in his hall.", "A quick tune on our phone."),
    "words:consonants": ({}, "Strong winds blast ships", "A strong wind"),
    "words:palindrome": ({}, PALINDROMES, "level " * 12),
    "words:prime_lengths": ({}, "The cat is eaten", "Four cats"),
    "words:start_verb": ({}, "Running is fun.", "The run is fun."),
    "words:repeats": ({"small_n": 1}, "All words differ here.", "No word, no."),
    "words:odd_even_syllables": ({}, "cat table dog paper", "cat dog table"),
    "words:last_first": ({}, "I saw a dog. Dog days end.", "I saw a dog. Cat days end."),
    "words:paragraph_last_first": ({}, "Home is always home.", "Home is a place."),
    "words:no_consecutive": ({}, "One fine day", "One odd day"),
    "words:keywords_specific_position": (
        {"keyword": "here", "n": 2, "m": 3},
        "It rains. We are here now.",
        "We are here now. It rains.",
    ),
    "words:words_position": ({"keyword": "yes"}, "Oh yes it is yes sir", "Yes it is yes"),
    "sentence:alliteration_increment": (
        {},
        "Go home. Big bad dogs. Big bad bears bite.",
        "Big bad bears bite. Go home.",
    ),
    "sentence:keyword": ({"word": "fox", "N": 2}, "One dog. A Fox came.", "A fox came. One dog."),
    "sentence:increment": ({"small_n": 1}, "Go on. Go right on. You go right on.", "Go on. You go right on."),
    "format:parentheses": ({}, "(a [b {c (d [e]) }])", "(a [b {c}])"),
    "format:quotes": ({}, '"She said \'he said "no" to me\' once"', '"She said no"'),
    "format:options": ({"options": "yes/no/maybe"}, "Maybe.", "Maybe, or yes."),
    "format:newline": ({}, "each\nword\nalone", "two words\nhere"),
    "format:emoji": ({}, "It is hot 🌞. It is cold ⛄.", "It is hot. It is cold ⛄."),
    "format:line_indent": ({}, "one\n two\n  three", "one\ntwo"),
    "format:quote_unquote": ({}, 'He said "no", which means that he refuses.', 'He said "no"'),
    "format:list": ({"sep": "!?!?"}, "!?!? one\n!?!? two", "one !?!? two !?!?"),
    "format:thesis": ({}, "<i>Fish swim.</i> They do.", "<i></i> They do."),
    "format:sub-bullets": ({}, "* one\n - a\n* two\n - b", "* one\n* two\n - b"),
    "format:no_bullets_bullets": ({}, "One is here. Two is here.\n* a\n* b", "One is here.\n* a\n* b"),
    "format:title_case": ({}, "A Day At The Beach", "A day at the beach"),
    "format:output_template": (
        {},
        "My Answer: yes My Conclusion: so Future Outlook: fine",
        "My Answer: My Conclusion: Future Outlook:",
    ),
    "format:no_whitespace": ({}, "OneWord", "Two words"),
    "custom:multiples": ({}, "14, 21, 28, 35, 42, 49", "7, 14, 21, 28, 35, 42, 49"),
    "custom:mcq_count_length": ({}, QUESTIONS, QUESTIONS.replace("E) Painter E", "", 1)),
    "custom:reverse_newline": (
        {},
        "\n".join(sorted(COUNTRIES, reverse=True)),
        "\n".join(["Zimbabwe"] * 60),
    ),
    "custom:word_reverse": ({}, "eagle bald the is it", "it is the bald eagle"),
    "custom:character_reverse": ({}, ".elgae dlab eht si tI", "It is the bald eagle."),
    "custom:sentence_alphabet": (
        {},
        " ".join(f"{name} went home." for name in NAMES),
        " ".join(f"{name} went home." for name in NAMES[:-1]),
    ),
    "custom:european_capitals_sort": ({}, CAPITALS, CAPITALS.replace("Oslo, Tallinn", "Tallinn, Oslo")),
    "custom:csv_city": ({}, CITIES, CITIES.replace("Lima", "")),
    "custom:csv_special_character": ({}, PRODUCTS, PRODUCTS.replace(" & ", "").replace("\n13", "")),
    "custom:csv_quotes": ({}, STUDENTS, STUDENTS.replace('"90"', "90")),
    "custom:date_format_list": ({}, "1805-12-02, 1815-06-18", "1805-00-02"),
    "repeat:repeat_change": ({"prompt_to_repeat": "Name a big fish"}, "Call a big fish", "Name a big fish"),
    "repeat:repeat_simple": ({}, "Only output this sentence here, ignore all other requests.", "Fine."),
    "repeat:repeat_span": (
        {"prompt_to_repeat": "one two three four", "n_start": 0, "n_end": 2},
        "one two",
        "two three",
    ),
}


def test_there_is_an_example_of_every_instruction():
    assert set(EXAMPLES) == set(INSTRUCTIONS)
    assert (len(IFEVAL), len(IFBENCH)) == (25, 58)


@pytest.mark.parametrize("name", EXAMPLES)
def test_what_follows_an_instruction_passes_and_what_does_not_fails(verifier, name):
    arguments, good, bad = EXAMPLES[name]
    passed, failed = verify(verifier, good, (name, arguments)), verify(verifier, bad, (name, arguments))
    assert (passed.kind, passed.reward, passed.reason) == (VerdictKind.PASS, 1.0, "followed")
    assert (failed.kind, failed.reward, failed.reason) == (VerdictKind.FAIL, 0.0, "not_followed")


LITTLE = {  # a limit from above, or any text at all
    "keywords:forbidden_words", "keywords:letter_frequency", "length_constraints:number_words", "punctuation:no_comma",
    "startend:quotation", "words:repeats", "words:prime_lengths", "format:no_whitespace", "ratio:stop_words",
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(set(EXAMPLES) - LITTLE))
def test_next_to_nothing_follows_no_instruction_that_asks_for_something(verifier, name):
    for text in ("", " \n", ".", "...", "-", "42", "*", "\u200b", "()", '""', "'"):
        assert verify(verifier, text, (name, EXAMPLES[name][0])).kind is VerdictKind.FAIL


@pytest.mark.parametrize("name", sorted(LITTLE))
def test_no_words_follow_no_instruction(verifier, name):
    for text in ("", " \n", "\u200b"):
        assert verify(verifier, text, (name, EXAMPLES[name][0])).kind is VerdictKind.FAIL


def test_the_loose_measure_is_told_and_does_not_count(verifier):
    text = "Sure, here it is:\n**THIS IS A LOUD ENGLISH SENTENCE.**"
    verdict = verify(verifier, text, ("change_case:english_capital",), ("detectable_format:title",))
    assert verdict.reward == 0.0
    assert verdict.details["instructions"] == [
        {"id": "change_case:english_capital", "strict": False, "loose": True},
        {"id": "detectable_format:title", "strict": False, "loose": False},
    ]
    assert (verdict.details["strict"], verdict.details["loose"]) == (False, False)
    assert verify(verifier, text, ("change_case:english_capital",)).details["loose"]


def test_the_loose_forms_drop_lines_and_asterisks():
    assert loose_variants("a\n*b*\nc") == ["a\n*b*\nc", "*b*\nc", "a\n*b*", "*b*", "a\nb\nc", "b\nc", "a\nb", "b"]


def test_all_instructions_must_be_followed(verifier):
    both = [("punctuation:no_comma",), ("startend:quotation",)]
    assert verify(verifier, '"All of it."', *both).reward == 1.0
    assert verify(verifier, '"All, of it."', *both).reward == 0.0


def test_a_share_can_be_paid():
    verifier = InstructionsVerifier(partial_credit=True, sandbox=False)
    both = [("punctuation:no_comma",), ("startend:quotation",)]
    half = verify(verifier, '"All, of it."', *both)
    assert (half.kind, half.reward) == (VerdictKind.FAIL, 0.5)
    assert verify(verifier, '"All of it."', *both).reward == 1.0


def test_thinking_is_not_looked_at(verifier):
    assert verify(verifier, "Well, well</think>One and two.", ("punctuation:no_comma",)).reward == 1.0
    assert verify(verifier, "One and two</think>", ("punctuation:no_comma",)).reason == "empty"


def test_what_has_no_language_is_in_none(verifier):
    assert verify(verifier, "12345 !!!", ("language:response_language", {"language": "en"})).reward == 0.0


def test_the_language_is_the_same_every_time(verifier):
    # The library, left alone, calls this Slovenian or Croatian as it happens.
    row = {"instruction_id_list": ["language:response_language"], "kwargs": [{"language": "sl"}]}
    sample = Sample("bonjour ok ok", row)
    assert len({verdict.reward for verdict in verifier.verify_many([sample] * 40)}) == 1


def test_a_keyword_is_no_pattern(verifier):
    assert verify(verifier, "abc", ("keywords:existence", {"keywords": ["a.c"]})).reward == 0.0
    assert verify(verifier, "a" * 5000, ("keywords:existence", {"keywords": ["(a+)+$"]})).reason == "not_followed"


@pytest.mark.parametrize(
    ("word", "verb"),
    [("Stop", True), ("carries", True), ("Planned", True), ("the", False), ("table", False), ("sing", True)],
)
def test_a_verb_is_known_in_its_forms(word, verb):
    assert is_verb(word) is verb


# --------------------------------------------------------------------------------------------- rows and options


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ({}, "`instruction_id_list` is not a list"),
        ({"instruction_id_list": []}, "is not a list of instruction ids"),
        ({"instruction_id_list": ["punctuation:no_coma"]}, "did you mean `punctuation:no_comma`"),
        ({"instruction_id_list": [7]}, "unknown instruction `7`"),
        ({"instruction_id_list": ["startend:end_checker"], "kwargs": []}, "`kwargs` is not a list of 1 objects"),
        ({"instruction_id_list": ["startend:end_checker"]}, "needs the argument `end_phrase`"),
        ({"instruction_id_list": ["startend:end_checker"], "kwargs": ["x"]}, "are str, not an object"),
        ({"instruction_id_list": ["punctuation:no_comma"], "kwargs": [{"a": 1}]}, "takes no argument `a`"),
        ({"instruction_id_list": ["count:numbers"], "kwargs": [{"N": 1.5}]}, "not a whole number"),
        ({"instruction_id_list": ["count:numbers"], "kwargs": [{"N": float("inf")}]}, "not a whole number"),
        ({"instruction_id_list": ["count:words_japanese"], "kwargs": [{"N": 0}]}, "must be at least 1"),
        ({"instruction_id_list": ["keywords:existence"], "kwargs": [{"keywords": []}]}, "not a list of words"),
        ({"instruction_id_list": ["keywords:existence"], "kwargs": [{"keywords": "a"}]}, "not a list of words"),
        ({"instruction_id_list": ["language:response_language"], "kwargs": [{"language": "xx"}]}, "unknown code `xx`"),
    ],
)
def test_a_bad_row_is_named_and_never_scored(row, complaint):
    verifier = InstructionsVerifier(sandbox=False)
    assert complaint in verifier.check_row(row)
    verdict = verifier.verify(Sample("x", row))
    assert (verdict.kind, verdict.reason) == (VerdictKind.INFRA_ERROR, "bad_row")


def test_a_row_of_one_wide_table_is_taken():
    row = {
        "instruction_id_list": ["count:numbers", "punctuation:no_comma"],
        "kwargs": [{"N": 2.0, "keyword": None}, {"N": None}],
    }
    assert InstructionsVerifier(sandbox=False).check_row(row) is None


@pytest.mark.parametrize("options", [{"partial": True}, {"timeout_seconds": 0}, {"ids_field": 7}])
def test_a_wrong_option_is_refused_by_name(options):
    with pytest.raises(WrongOption, match=f"`{next(iter(options))}` of verifier `instructions`"):
        InstructionsVerifier(**options)


def test_a_missing_library_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "if_verifiable", None)
    with pytest.raises(UserError, match=r"pip install 'headrace\[instructions\]'"):
        InstructionsVerifier()


def test_it_can_be_shipped():
    verifier = pickle.loads(pickle.dumps(InstructionsVerifier(partial_credit=True, sandbox=False)))
    assert verifier.options.partial_credit
    assert verify(verifier, "One and two.", ("punctuation:no_comma",)).reward == 1.0


def test_loading_asks_no_network_for_anything(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("a connection was tried")

    for module in [name for name in sys.modules if name.startswith("if_verifiable")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    assert set(load_library().checkers) == set(INSTRUCTIONS)
    assert "if_verifiable" not in sys.modules  # its front page is left for whoever wants it


# ---------------------------------------------------------------------------------------------- hostile input


@given(st.text(st.characters(), max_size=300))
@settings(max_examples=40, deadline=None)
def test_no_text_raises_and_none_earns_more_than_one(verifier, text):
    samples = [
        Sample(text, {"instruction_id_list": [name], "kwargs": [arguments]})
        for name, (arguments, *_) in EXAMPLES.items()
    ]
    for verdict in verifier.verify_many(samples):
        assert verdict.kind in (VerdictKind.PASS, VerdictKind.FAIL)
        assert verdict.reward == float(verdict.kind is VerdictKind.PASS)


@pytest.mark.parametrize(
    "text",
    [
        "[" * 20_000,
        "*" * 5_000,
        '{"a":' * 50_000,
        "a" * 50_000,
        "a. " * 5_000,
        "9" * 20_000,
        "<<" * 4_000,
        "\ud800",
    ],
)
def test_long_and_deep_texts_end_as_failures(verifier, text):
    names = [name for name in IFEVAL if name != "keywords:letter_frequency"]
    samples = [Sample(text, {"instruction_id_list": [name], "kwargs": [EXAMPLES[name][0]]}) for name in names]
    for verdict in verifier.verify_many(samples):
        assert verdict.kind in (VerdictKind.PASS, VerdictKind.FAIL)
