"""Waiting for a state. No test decides by seconds: a limit is there for what hangs."""

import time

# Seconds that nothing takes on a slow machine beside other work.
HANG = 600.0


def until(holds, said=lambda: "", pause=0.02):
    """Waits until something holds.

    Args:
      holds: a function; what it returns is returned once it is true.
      said: a function, called where that does not come: what to say.
      pause: seconds between two looks.
    """
    end = time.monotonic() + HANG
    while not (found := holds()):
        assert time.monotonic() < end, said()
        time.sleep(pause)
    return found
