"""How long a run still takes, from how long its stages took so far."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


class Pace:
    """The time to the end of a run whose stages took known times elsewhere.

    Args:
      seconds: what stages took on some machine; stages that are not in it have no time to the end.
      names: the stages of the run, in order.
    """

    # A stage that is this much faster than the others was done before.
    DONE = 0.1

    def __init__(self, seconds: Mapping[str, float], names: Sequence[str]) -> None:
        self._seconds, self._left = seconds, list(names)
        self._took: dict[str, float] = {}

    def ended(self, name: str, took: float) -> str:
        """What is to be said when a stage ends that took so many seconds."""
        self._left.remove(name)
        if took > self.DONE * self._seconds.get(name, 0.0):
            self._took[name] = took
        left = self.left()
        end = "" if left is None else f"; about {_said(left)} to the end"
        return f"{name}: done in {_said(took)}{end}"

    def left(self) -> float | None:
        """Seconds to the end; None where no stage tells, or none is left."""
        known = [name for name in self._took if name in self._seconds]
        if not known or not self._left or any(name not in self._seconds for name in self._left):
            return None
        took, elsewhere = (sum(times[n] for n in known) for times in (self._took, self._seconds))
        return sum(self._seconds[name] for name in self._left) * took / elsewhere


def _said(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"
