"""Traffic: what went in and out lately, from the engine's counters, in the windows that Apache's tools know.

The engine counts; here its counters are sampled every 10 s. A rate is the difference between the newest sample and the
oldest one of its window (minute: 10 s samples, hour: one every 10 min, day: one every hour).
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from aerobee.broker.server import Broker

SAMPLE_S: Final = 10.0
WINDOWS: Final = {"minute": (7, 1), "hour": (7, 60), "day": (25, 360)}
"""Window → (samples kept, every how many samples one is kept)."""


@dataclass(slots=True)
class Sample:
    """Counters at a moment: by statistic and key (count, number of calls)."""

    at_ms: int
    puts: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Topic → (messages, bytes)."""
    gets: dict[tuple[str, str], tuple[int, int]] = field(default_factory=dict)
    """(group, topic) → (messages, bytes)."""
    backs: Counter[tuple[str, str]] = field(default_factory=Counter)
    put_total: int = 0
    get_total: int = 0
    put_by_users: int = 0
    get_by_users: int = 0
    """Without the topics that are the broker's own."""
    pulls: int = 0
    misses: int = 0


class Stats:
    """Samples of the broker's traffic; see the head of this file."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self.sample_s = SAMPLE_S
        self._samples: dict[str, deque[Sample]] = {name: deque(maxlen=kept) for name, (kept, _) in WINDOWS.items()}
        self._count = 0
        self._backs: Counter[tuple[str, str]] = Counter()
        self._pops: dict[tuple[str, str], tuple[int, int]] = {}
        """(group, topic) → popped (messages, bytes); the engine only knows what was pulled."""
        self.dead_letters: Counter[str] = Counter()
        """Group → messages that went to its dead letters since the start."""
        self._day = -1
        self._put_morning = self._put_yesterday = 0
        self._get_morning = self._get_yesterday = 0
        self._keep(self._now())

    def sent_back(self, group: str, topic: str) -> None:
        """A consumer sent a message back."""
        self._backs[group, topic] += 1

    def popped(self, group: str, topic: str, count: int, size: int) -> None:
        """A group popped so many messages."""
        known = self._pops.get((group, topic), (0, 0))
        self._pops[group, topic] = (known[0] + count, known[1] + size)

    def dead_lettered(self, group: str) -> None:
        """A message had all its chances."""
        self.dead_letters[group] += 1

    async def sample(self) -> None:
        """Takes a sample; called every `sample_s`."""
        self._keep(self._now())

    def _now(self) -> Sample:
        counters: dict[str, Any] = self._broker.store.counters()
        puts = dict(counters["puts"])
        gets = dict(counters["gets"])
        for key, (count, size) in self._pops.items():
            pulled = gets.get(key, (0, 0))
            gets[key] = (pulled[0] + count, pulled[1] + size)
        own = self._broker.topics.is_system
        return Sample(
            at_ms=self._broker.clock.now_ms(),
            puts=puts,
            gets=gets,
            backs=Counter(self._backs),
            put_total=sum(count for count, _ in puts.values()),
            get_total=sum(count for count, _ in gets.values()),
            put_by_users=sum(count for topic, (count, _) in puts.items() if not own(topic)),
            get_by_users=sum(count for (_, topic), (count, _) in gets.items() if not own(topic)),
            pulls=counters["pulls"],
            misses=counters["pulls_parked"],
        )

    def _keep(self, sample: Sample) -> None:
        for name, (_, every) in WINDOWS.items():
            if self._count % every == 0:
                self._samples[name].append(sample)
        self._count += 1
        day = datetime.fromtimestamp(sample.at_ms / 1000).toordinal()
        if day != self._day:
            if self._day >= 0:
                self._put_yesterday, self._get_yesterday = self._put_morning, self._get_morning
                self._put_morning, self._get_morning = sample.put_by_users, sample.get_by_users
            self._day = day

    # Answers.

    def _window(self, name: str) -> tuple[Sample, Sample, float]:
        """(oldest, now, seconds between them) of a window."""
        now = self._now()
        oldest = self._samples[name][0]
        return oldest, now, max(0.001, (now.at_ms - oldest.at_ms) / 1000)

    def put_tps(self, topic: str) -> float:
        """Messages a second into a topic, over the last minute."""
        then, now, seconds = self._window("minute")
        return round((now.puts.get(topic, (0, 0))[0] - then.puts.get(topic, (0, 0))[0]) / seconds, 2)

    def get_tps(self, group: str, topic: str) -> float:
        """Messages a second out of a topic to a group, over the last minute."""
        return self.get_tps_of_all()(group, topic)

    def get_tps_of_all(self) -> Callable[[str, str], float]:
        """`get_tps` for many: what is counted is looked at once."""
        then, now, seconds = self._window("minute")

        def get_tps(group: str, topic: str) -> float:
            key = (group, topic)
            return round((now.gets.get(key, (0, 0))[0] - then.gets.get(key, (0, 0))[0]) / seconds, 2)

        return get_tps

    def view(self, name: str, key: str) -> dict[str, tuple[int, float]] | None:
        """A statistic by Apache's name and key: window → (sum, a second). None when there is no such thing."""
        now = self._now()
        if _value(now, name, key) is None:
            return None
        result = {}
        for window in WINDOWS:
            then = self._samples[window][0]
            seconds = max(0.001, (now.at_ms - then.at_ms) / 1000)
            total = (_value(now, name, key) or 0) - (_value(then, name, key) or 0)
            result[window] = (total, round(total / seconds, 2))
        return result

    def runtime(self) -> dict[str, str]:
        """The traffic lines of GET_BROKER_RUNTIME_INFO."""
        now = self._now()
        minute = self._samples["minute"]
        return {
            "putMessageTimesTotal": str(now.put_total),
            "putMessageSizeTotal": str(sum(size for _, size in now.puts.values())),
            "putMessageAverageSize": str(sum(size for _, size in now.puts.values()) / max(1, now.put_total)),
            "putTps": _rates(minute, self._samples["hour"], now, "put_total"),
            "getTotalTps": _rates(minute, self._samples["hour"], now, "pulls"),
            "getFoundTps": _rates(minute, self._samples["hour"], now, "get_total"),
            "getMissTps": _rates(minute, self._samples["hour"], now, "misses"),
            "getTransferredTps": _rates(minute, self._samples["hour"], now, "get_total"),
            "msgPutTotalYesterdayMorning": str(self._put_yesterday),
            "msgPutTotalTodayMorning": str(self._put_morning),
            "msgPutTotalTodayNow": str(now.put_by_users),
            "msgGetTotalYesterdayMorning": str(self._get_yesterday),
            "msgGetTotalTodayMorning": str(self._get_morning),
            "msgGetTotalTodayNow": str(now.get_by_users),
        }


def _rates(minute: deque[Sample], hour: deque[Sample], now: Sample, name: str) -> str:
    """`a b c`: a second over the last 10 s, minute and 10 minutes, as Apache prints it."""
    parts = []
    for then in (
        minute[-1] if now.at_ms - minute[-1].at_ms > 1000 or len(minute) < 2 else minute[-2],
        minute[0],
        hour[-1],
    ):
        seconds = max(0.001, (now.at_ms - then.at_ms) / 1000)
        parts.append(str((getattr(now, name) - getattr(then, name)) / seconds))
    return " ".join(parts)


def _value(sample: Sample, name: str, key: str) -> int | None:
    topic, _, group = key.partition("@")
    match name:
        case "TOPIC_PUT_NUMS":
            found = sample.puts.get(key)
            return found[0] if found is not None else None
        case "TOPIC_PUT_SIZE":
            found = sample.puts.get(key)
            return found[1] if found is not None else None
        case "GROUP_GET_NUMS":
            found = sample.gets.get((group, topic))
            return found[0] if found is not None else None
        case "GROUP_GET_SIZE":
            found = sample.gets.get((group, topic))
            return found[1] if found is not None else None
        case "SNDBCK_PUT_NUMS":
            return sample.backs[group, topic] if (group, topic) in sample.backs else None
        case "BROKER_PUT_NUMS":
            return sample.put_total
        case "BROKER_GET_NUMS":
            return sample.get_total
    return None
