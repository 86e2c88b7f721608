"""A job written out: every value is there, and it is the same job when it is read again."""

import re

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headrace.cluster.config import JobConfig
from headrace.cluster.job_file import dump_job, load_job

JOB = JobConfig.model_validate(
    {"model": {"base": "owner/name"}, "data": {"train": "/data/train.jsonl"}, "reward": {"verifier": "regex"}}
)


def test_a_dumped_job_shows_every_key_also_those_that_are_not_set():
    dumped = dump_job(JOB)
    shown: dict[str, list[str]] = {}
    for line in dumped.splitlines():
        if header := re.match(r"(?:# )?\[(\w+)\]", line):
            keys = shown.setdefault(header[1], [])
        elif key := re.match(r"# (\w+): not set|(\w+) = ", line):
            keys.append(key[1] or key[2])
    sections = {name: getattr(JOB, name) for name in JobConfig.model_fields}
    assert sections["warm_start"] is None and shown.pop("warm_start") == []
    assert shown == {name: list(type(each).model_fields) for name, each in sections.items() if each is not None}
    assert "\n# [warm_start]: not set; its keys: data, samples, epochs, batch_size, learning_rate\n" in dumped
    assert "\n# threads: not set. Torch threads of a rank on a CPU; default: the cores that it may use " in dumped


texts = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=20)
options = st.recursive(
    st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=texts,
    stop=st.lists(texts.filter(bool), max_size=3),
    rate=st.floats(1e-12, 1.0),
    cap=st.sampled_from([1.5, float("inf")]),
    turns=st.sampled_from([True, False, "auto"]),
    engine=st.dictionaries(texts, options, max_size=4),
    system=st.none() | texts,
    warm_start=st.none() | st.fixed_dictionaries({"data": st.just("/w.jsonl"), "samples": st.none() | st.just(3)}),
)
def test_a_dumped_job_is_the_same_job_when_it_is_loaded(
    tmp_path, name, stop, rate, cap, turns, engine, system, warm_start
):
    job = JobConfig.model_validate(
        {
            "job": {"name": name},
            "model": {"base": "owner/name"},
            "data": {"train": "/data/train.jsonl", "system": system},
            "reward": {"verifier": "regex", "options": engine},
            "algorithm": {"tis_cap": cap},
            "rollout": {"stop": stop, "engine": engine},
            "learner": {"learning_rate": rate},
            "placement": {"take_turns": turns},
            "warm_start": warm_start,
        }
    )
    path = tmp_path / "dumped.toml"
    path.write_text(dump_job(job), encoding="utf-8", newline="")
    assert load_job(path) == job
