"""Which weight updates the benchmark counts; the run that it measures is not made here."""

import pytest

from benchmarks.start_and_sync import busy_updates


def published(*versions: int) -> list[dict]:
    """The controller's events."""
    events = [[{"event": "weights_published", "version": v, "seconds": 1.0}, {"event": "step"}] for v in versions]
    return [event for pair in events for event in pair]


def swapped(*groups: int) -> list[dict]:
    """The generator's, of versions 0 and on."""
    return [{"event": "weights_swapped", "version": version, "groups": count} for version, count in enumerate(groups)]


def test_an_update_counts_where_the_engine_had_groups_to_generate():
    counted = busy_updates(published(0, 1, 2, 3), [{"event": "engine_started"}, *swapped(0, 8, 1, 0)])
    assert [event["version"] for event in counted] == [1, 2]
    assert {event["event"] for event in counted} == {"weights_published"}


@pytest.mark.parametrize(("events", "swaps"), [([], []), (published(0, 1), swapped(0, 0))])
def test_without_such_an_update_there_is_no_figure(events, swaps):
    with pytest.raises(RuntimeError, match=r"none of the \d weight updates found an engine with requests in flight"):
        busy_updates(events, swaps)
