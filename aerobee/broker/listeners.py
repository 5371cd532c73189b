"""Where the broker listens, and what it tells clients to dial.

    main        bindAddress and listenPort; advertised: brokerIP1 and the port listened on
    NAME        one for each `NAME://host:port` in `listeners`; advertised: itself

For "all addresses" one is advertised that leads to the name servers, or else out of this machine.

Each is served twice, at its port and at the one two below, which clients with the VIP channel switched on dial for
sends. What clients are told differs where `advertisedListeners` says so: behind NAT or a mapped port the outer address.

Name servers hand out the address of `main`. A name server of aerobee that a client asks through its own listener of the
same NAME hands out that one's instead, so that clients inside and outside each get an address that they can reach.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections import Counter
from typing import Final

from aerobee.broker.options import FAST_PORT_OFFSET, LOOPBACK, BrokerOptions
from aerobee.net.addresses import MAIN, is_loopback, named_addresses
from aerobee.net.listener import Limits, Listener, Service

_log = logging.getLogger("aerobee.broker")

FREE_PORT_TRIES: Final = 50
EVERYWHERE: Final = {
    "0.0.0.0": (socket.AF_INET, "192.0.2.1:9", LOOPBACK),
    "[::]": (socket.AF_INET6, "[2001:db8::1]:9", "[::1]"),
}
"""All addresses, as a listener says it: their kind, one of it that is for documentation and nobody's, and loopback."""


class Listeners:
    """All listening sockets of a broker; see the head of this file. `start` and `stop` once each."""

    def __init__(self, options: BrokerOptions) -> None:
        self.all: list[Listener] = []
        """The main one and its second port, then each further one and its second port."""
        self.advertised: dict[str, str] = {}
        """Name of a listener → what its clients are told to dial; `main` comes first."""
        self.store_host = ""
        """ip:port that messages carry as the place where they were stored."""
        self._options = options

    @property
    def addresses(self) -> list[str]:
        """Addresses listened on."""
        return [listener.address for listener in self.all]

    @property
    def address(self) -> str:
        """What clients are told to dial, unless they come through another listener."""
        return self.advertised[MAIN]

    @property
    def counters(self) -> dict[str, int]:
        """Connections: opened, refused, closed by reason."""
        total: Counter[str] = Counter()
        for listener in self.all:
            total.update(listener.counters)
        return dict(total)

    @property
    def connections(self) -> int:
        """Connections that are open now."""
        return sum(len(listener.connections) for listener in self.all)

    async def start(self, service: Service) -> None:
        """Listens everywhere. Raises OSError when a port is taken; call `stop` then."""
        options = self._options
        fast = options.fast_port if options.fast_port >= 0 else None
        main = await self._listen(service, options.bind_address, options.listen_port, fast)
        host, _, port = main.address.rpartition(":")
        self.advertised[MAIN] = f"{options.broker_ip1 or self._reachable(host)}:{port}"
        for name, address in named_addresses(options.listeners).items():
            host, _, port = address.rpartition(":")
            found = (await self._listen(service, host, int(port), None)).address
            host, _, port = found.rpartition(":")
            self.advertised[name] = f"{self._reachable(host)}:{port}"
        self.advertised.update(named_addresses(options.advertised_listeners))
        self.store_host = await self._resolved(main.address)
        self._warn_if_unreachable(main.address)

    def hold(self) -> None:
        """Accepts nothing more, neither connections nor requests."""
        for listener in self.all:
            listener.hold()

    async def stop(self, grace_s: float) -> None:
        """Sends what is queued, closes; after `grace_s` those that do not read are cut."""
        await asyncio.gather(*(listener.stop(grace_s) for listener in self.all))

    async def _listen(self, service: Service, host: str, port: int, fast: int | None) -> Listener:
        """Listens at a port (0: a free one) and at its second one (None: two below); returns the first of the two."""
        options = self._options
        idle_s = float(options.server_channel_max_idle_time_seconds)
        limits = Limits(connections_max=options.connections_max, idle_s=idle_s)
        attempt = 0
        while True:
            attempt += 1
            main, second = Listener(beside=self._everyone), Listener(beside=self._everyone)
            self.all.append(main)
            await main.start(service, host, port, limits=limits)
            below = int(main.address.rpartition(":")[2]) - FAST_PORT_OFFSET
            try:
                await second.start(service, host, below if fast is None else fast, limits=limits)
            except OSError:
                if port != 0 or attempt == FREE_PORT_TRIES:
                    raise
                self.all.remove(main)
                await main.stop(0.0)
                continue
            self.all.append(second)
            return main

    def _everyone(self) -> list[Listener]:
        """Those whose connections count towards the one limit."""
        return self.all

    def _reachable(self, host: str) -> str:
        """The address to advertise for a listening one: itself, or for "all addresses" one that other machines reach.

        That is the one that leads to a name server on another machine, or else out of this one, as Apache's broker
        looks for an address that is not loopback.
        """
        if host not in EVERYWHERE:
            return host
        family, somewhere, nothing = EVERYWHERE[host]
        for server in [*self._options.name_servers, somewhere]:
            found = _leads_to(family, server)
            if found and not is_loopback(found):
                return f"[{found}]" if family == socket.AF_INET6 else found
        return nothing

    def _warn_if_unreachable(self, listening: str) -> None:
        """Said once at the start: nobody but this machine will reach what is advertised."""
        host, _, _ = listening.rpartition(":")
        told = self.store_host.rpartition(":")[0]
        if is_loopback(host):
            elsewhere = [server for server in self._options.name_servers if not is_loopback(server.rpartition(":")[0])]
            if is_loopback(told) and not elsewhere:
                return  # all of it is on this machine
            _log.warning(
                "clients elsewhere are told to dial %s, but this broker listens on %s only; set bindAddress (0.0.0.0 "
                "for all addresses)",
                self.address, host,
            )  # fmt: skip
        elif host in EVERYWHERE and is_loopback(told):
            _log.warning(
                "clients elsewhere are told to dial %s, which is their own machine; set brokerIP1 to an address of "
                "this one that they reach",
                self.address,
            )

    async def _resolved(self, listening: str) -> str:
        """The main address as numbers: a message's record has no room for a name."""
        host, _, port = self.address.rpartition(":")
        loop = asyncio.get_running_loop()
        try:
            found = await loop.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            _log.warning(
                "%s, which clients are told to dial, cannot be resolved here (%s); offset message ids name %s instead",
                host, getattr(error, "strerror", "it is no host name"), listening,
            )  # fmt: skip
            host, _, port = listening.rpartition(":")
            return f"{self._reachable(host)}:{port}"
        number = min(found, key=lambda entry: entry[0] != socket.AF_INET)[4][0]
        return f"[{number}]:{port}" if ":" in str(number) else f"{number}:{port}"


def _leads_to(family: socket.AddressFamily, other: str) -> str:
    """The address of this machine from which packets to `other` (host:port) leave; empty: there is no way."""
    host, _, port = other.rpartition(":")
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((host.strip("[]"), int(port)))  # sends nothing; only asks the routing table
            return str(probe.getsockname()[0])
    except (OSError, ValueError):
        return ""
