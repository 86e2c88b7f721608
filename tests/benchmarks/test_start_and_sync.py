"""Which weight updates the benchmark counts; the run that it measures is not made here."""

import pytest

from benchmarks.start_and_sync import busy_updates


def update(version: int, leased_groups: int) -> list[dict]:
    """The events of one version on its way, with another's between them."""
    return [
        {"event": "publishing", "version": version, "leased_groups": leased_groups},
        {"event": "step", "step": version},
        {"event": "weights_published", "version": version, "seconds": 1.0},
    ]


def test_an_update_counts_where_groups_were_being_generated_as_it_began():
    counted = busy_updates([*update(0, 0), *update(1, 8), *update(2, 1), *update(3, 0)])
    assert [event["version"] for event in counted] == [1, 2]
    assert {event["event"] for event in counted} == {"weights_published"}


@pytest.mark.parametrize("events", [[], update(1, 0) + update(2, 0)])
def test_without_such_an_update_there_is_no_figure(events):
    with pytest.raises(RuntimeError, match=r"none of the \d weight updates found an engine with requests in flight"):
        busy_updates(events)
