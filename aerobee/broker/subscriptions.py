"""What the members of a consumer group subscribe to: what is in force, and how they differ.

wanted = Subscriptions()
wanted.put(1, "c1", {"orders": subscription})   # member number 1 came, or subscribes to something else
wanted.drop(1)                                  # it is gone
changed, came_or_went = wanted.settle()         # what that means for the group

In force is the newest subscription to a topic (by version); of equally new ones that of the member with the lowest
number. Groups have thousands of members, which come and go all at once: a change costs what the topics of the one
member cost, and a search. Whatever the group is asked for stands first in a list that is kept in order.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from typing import Final

from aerobee.broker.filters import is_tag_kind
from aerobee.broker.topics import RETRY_PREFIX
from aerobee.protocol.bodies.client import SubscriptionData

Terms = tuple[tuple[str, str, str], ...]
"""Topic, kind and expression of all that a member subscribes to, in one order and spelling. Without the retry topics:
with which of them is the client's business, and differs while a group changes between pull and pop."""

DESCRIBED: Final = 3
"""So many members that differ are named."""


class Subscriptions:
    """By members, who are numbers; see the head of this file. `in_force`: topic → subscription, as last settled.
    `mismatch`: how the members differ, in a sentence; empty when they agree."""

    def __init__(self) -> None:
        self.in_force: dict[str, SubscriptionData] = {}
        self.mismatch = ""
        self._members: dict[int, tuple[str, Terms, dict[str, SubscriptionData]]] = {}
        self._of_topic: dict[str, list[tuple[int, int, SubscriptionData]]] = {}
        """Topic → (-version, member, subscription), the one in force first."""
        self._of_terms: dict[Terms, list[int]] = {}
        self._kinds: list[tuple[int, str, Terms]] = []
        """The first member with each terms, and its client id."""
        self._described: list[tuple[int, str, Terms]] = []
        self._touched: dict[str, None] = {}

    def put(self, member: int, client_id: str, subscriptions: dict[str, SubscriptionData]) -> None:
        """The member subscribes to this now, and to nothing else."""
        self.drop(member)
        own = (pair for pair in subscriptions.items() if not pair[0].startswith(RETRY_PREFIX))
        terms = tuple(sorted((topic, *_terms(wanted)) for topic, wanted in own))
        self._members[member] = client_id, terms, subscriptions
        for topic, wanted in subscriptions.items():
            insort(self._of_topic.setdefault(topic, []), (-wanted.sub_version, member, wanted))
            self._touched[topic] = None
        alike = self._of_terms.setdefault(terms, [])
        self._unlist(alike, terms)
        insort(alike, member)
        self._list(alike, terms)

    def drop(self, member: int) -> None:
        """The member is gone (if it was ever here)."""
        if member not in self._members:
            return
        _, terms, subscriptions = self._members[member]
        for topic, wanted in subscriptions.items():
            rows = self._of_topic[topic]
            del rows[bisect_left(rows, (-wanted.sub_version, member, wanted))]
            if not rows:
                del self._of_topic[topic]
            self._touched[topic] = None
        alike = self._of_terms[terms]
        self._unlist(alike, terms)
        del alike[bisect_left(alike, member)]
        self._list(alike, terms)
        if not alike:
            del self._of_terms[terms]
        del self._members[member]

    def settle(self) -> tuple[dict[str, SubscriptionData | None], bool]:
        """Brings what is in force up to date: the topics for which it is another one than last time (None: nobody
        subscribes any more), and whether topics came or went."""
        changed: dict[str, SubscriptionData | None] = {}
        before = len(self.in_force)
        came = went = 0
        for topic in self._touched:
            rows, known = self._of_topic.get(topic), self.in_force.get(topic)
            if rows is None:
                if known is not None:
                    changed[topic] = None
                    del self.in_force[topic]
                    went += 1
                continue
            newest = rows[0][2]
            if known is not newest:
                came += known is None
                self.in_force[topic] = newest
                if known != newest:
                    changed[topic] = newest
        self._touched.clear()
        assert len(self.in_force) == before + came - went == len(self._of_topic)
        described = self._kinds[:DESCRIBED] if len(self._kinds) > 1 else []
        if described != self._described:
            self._described = described
            self.mismatch = "; ".join(_describe(client_id, terms) for _, client_id, terms in described)
        return changed, bool(came or went)

    def _list(self, alike: list[int], terms: Terms) -> None:
        if alike:
            insort(self._kinds, (alike[0], self._members[alike[0]][0], terms))

    def _unlist(self, alike: list[int], terms: Terms) -> None:
        if alike:
            del self._kinds[bisect_left(self._kinds, (alike[0], self._members[alike[0]][0], terms))]


def _terms(wanted: SubscriptionData) -> tuple[str, str]:
    """Kind and expression; tags in one order and spelling: `b||a` is `a || b`."""
    kind, expression = wanted.expression_type or "TAG", wanted.sub_string or "*"
    if not is_tag_kind(kind):
        return kind, expression
    return "TAG", " || ".join(sorted({tag.strip() for tag in expression.split("||")} - {""})) or "*"


def _describe(client_id: str, terms: Terms) -> str:
    described = ", ".join(f"{topic} {kind} {expression!r}" for topic, kind, expression in terms)
    return f"{client_id}: {described or 'nothing'}"
