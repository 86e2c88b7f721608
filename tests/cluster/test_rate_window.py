from headrace.cluster.members import RateWindow


def test_a_rate_is_over_the_whole_window_and_forgets_what_lies_before_it():
    window = RateWindow(10.0)
    assert window.add(0.0, 0) == 0.0
    assert window.add(1.0, 40) == 40.0
    assert window.add(5.0, 40) == 8.0
    assert window.add(11.0, 100) == 6.0  # since 1.0, the last that is ten seconds old
    assert window.add(30.0, 100) == 0.0  # since 11.0
    assert window.add(30.0, 100) == 0.0
