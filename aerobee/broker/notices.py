"""Members of a group hear that somebody came or went (NOTIFY_CONSUMER_IDS_CHANGED), and share the queues anew.

notices.changed("group")      # its members hear of it, those who are members when they are told

A notice says nothing else, so one is enough for all changes since the last. A small group hears after the turn of the
loop in which it changed. In a large one changes are gathered for a moment, longer the more there are to hear of them:
if a thousand clients come one after another and each is told to all, that is a million notices for what a few thousand
say as well, and each of them makes its receiver ask for the list of members. Everybody hears within a second.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Collection, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Final

from aerobee.protocol.codes import RequestCode
from aerobee.protocol.command import RemotingCommand
from aerobee.protocol.headers.groups import NotifyConsumerIdsChanged

if TYPE_CHECKING:
    from aerobee.broker.clients import Client

SLICE: Final = 64
"""So many members, of whatever groups, are told in one turn of the loop; then others have theirs."""
GATHER_S_PER_MEMBER: Final = 0.000_1
"""A tenth of this is what telling one member costs: at most that share of the time goes into it."""
GATHER_S_MAX: Final = 0.5


class Notices:
    """See the head of this file. `members(group)`: who is in it now."""

    def __init__(self, members: Callable[[str], Collection[Client]]) -> None:
        self.written = 0
        """Notices so far."""
        self._members = members
        self._gathering: set[str] = set()
        self._telling: deque[tuple[bytes, Iterator[Client]]] = deque()

    def changed(self, group: str) -> None:
        """Somebody came to the group, left it, or subscribes to other topics."""
        if group in self._gathering:
            return
        self._gathering.add(group)
        loop, count = asyncio.get_running_loop(), len(self._members(group))
        if count <= SLICE:
            loop.call_soon(self._begin, group)
        else:
            loop.call_later(min(GATHER_S_MAX, count * GATHER_S_PER_MEMBER), self._begin, group)

    def _begin(self, group: str) -> None:
        self._gathering.remove(group)
        notice = RemotingCommand.request(
            RequestCode.NOTIFY_CONSUMER_IDS_CHANGED, NotifyConsumerIdsChanged(consumer_group=group), oneway=True
        )
        if not self._telling:
            asyncio.get_running_loop().call_soon(self._tell)
        # The same bytes for all: nobody answers it, so its opaque (0, which no request has that waits) means nothing.
        self._telling.append((notice.encode(), iter(list(self._members(group)))))

    def _tell(self) -> None:
        left = SLICE
        while left and self._telling:
            frame, members = self._telling.popleft()
            told = 0
            for member in islice(members, left):
                member.connection.write(frame)
                told += 1
            left -= told
            if not left:  # the others first, however many are left of this group
                self._telling.append((frame, members))
            self.written += told
        if self._telling:
            asyncio.get_running_loop().call_soon(self._tell)
