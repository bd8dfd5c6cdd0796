"""The time to the end of a run."""

from oneforcing_jax.setup.pace import Pace

SECONDS = {"world": 30, "teacher": 300, "student": 100, "report": 20}


def test_the_time_to_the_end_follows_the_machine() -> None:
    pace = Pace(SECONDS, list(SECONDS))
    assert pace.left() is None
    assert pace.ended("world", 60.0) == "world: done in 60 s; about 14 min to the end"
    # A slower teacher counts for more than the world before it.
    pace.ended("teacher", 930.0)
    assert pace.left() == (100 + 20) * (60 + 930) / (30 + 300)


def test_what_was_done_before_says_nothing() -> None:
    pace = Pace(SECONDS, list(SECONDS))
    pace.ended("world", 30.0)
    pace.ended("teacher", 0.2)
    assert pace.left() == 120
    assert pace.ended("student", 100.0) == "student: done in 2 min; about 20 s to the end"
    assert pace.ended("report", 20.0) == "report: done in 20 s"


def test_an_unknown_stage_has_no_time_to_the_end() -> None:
    pace = Pace(SECONDS, ["world", "another", "report"])
    assert pace.ended("world", 30.0) == "world: done in 30 s"
    assert pace.ended("another", 500.0) == "another: done in 8 min; about 20 s to the end"
