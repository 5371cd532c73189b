"""What the commands say."""

from __future__ import annotations

import logging
import sys

from aerobee.errors import AerobeeError


def say(line: str, *, flush: bool = False) -> None:
    """Prints a line. Raises AerobeeError when it cannot be written, BrokenPipeError when nobody reads any more."""
    try:
        print(line, flush=flush)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise AerobeeError(f"the output cannot be written: {error.strerror}") from None


def show_log(level: int) -> None:
    """A command that ends with one sentence shows nothing of what the client logs beside it."""
    logging.getLogger("aerobee").setLevel(level)


def fail(sentence: str) -> int:
    """Prints why a command failed; returns its exit code. Remarks of servers have a second line, for Java's client."""
    print(f"aerobee: {sentence.partition(chr(10))[0]}", file=sys.stderr)
    return 1


def rate(count: float, seconds: float) -> str:
    """`12 345/s`."""
    return f"{count / max(seconds, 1e-9):,.0f}/s".replace(",", " ")


def milliseconds(seconds: float) -> str:
    """`0.41 ms`."""
    return f"{seconds * 1000:.2f} ms"


def percentile(ordered: list[float], share: float) -> float:
    """The value below which this share of the (sorted, non-empty) values lies."""
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]
