"""Settings of the name server, under the names of Apache's `namesrv.properties`."""

from __future__ import annotations

from pathlib import Path

from aerobee import options_ignored
from aerobee.net.addresses import check_listeners
from aerobee.options import Options, setting


class NameServerOptions(Options):
    """One row a setting. Names of files can only be set on the machine itself."""

    ENVIRONMENT = "AEROBEE_NAMESERVER_"
    IGNORED = options_ignored.NAMESERVER
    REFUSED = options_ignored.NAMESERVER_REFUSED

    listen_port = setting(
        9876, "Port that brokers and clients dial; 0 takes a free one.", low=0, high=65535, remote=False
    )
    bind_address = setting("127.0.0.1", "Address to listen on; 0.0.0.0 for every network.", remote=False)
    listeners = setting(
        "",
        "Further places to listen, `NAME://HOST:PORT` separated by `;`. Who asks there is told what brokers advertise "
        "for their listener of that name.",
        remote=False,
    )
    server_channel_max_idle_time_seconds = setting(
        120, "Close a connection on which nothing moved for this time.", low=1, high=86400, remote=False
    )
    connections_max = setting(
        0,
        "Refuse further connections above this number; 0: as many as the process may open files.",
        low=0,
        remote=False,
    )

    kv_config_path = setting(
        "",
        "File of the KV configuration.",
        factory=lambda: str(Path.home() / "namesrv" / "kvConfig.json"),
        remote=False,
    )
    config_store_path = setting(
        "", "File for settings changed over the wire; empty: the file given at the start.", remote=False
    )
    config_black_list = setting(
        "", "Further settings, separated by `;`, that may not be changed over the wire.", remote=False
    )

    scan_not_active_broker_interval = setting(
        5000, "How often to look for brokers that fell silent, in ms.", low=10, high=3_600_000, live=True
    )
    support_acting_master = setting(
        False, "Show the replica with the smallest id as master while the master is away.", live=True
    )
    notify_min_broker_id_changed = setting(
        False, "Tell the brokers of a set when its smallest broker id changes.", live=True
    )
    delete_topic_with_broker_registration = setting(
        False, "Forget a broker's topics that its registration does not mention any more.", live=True
    )
    order_message_enable = setting(False, "Add the order configuration of a topic to its route.", live=True)
    return_order_topic_config_to_broker = setting(
        True, "Answer a registration with the order configuration of all topics.", live=True
    )
    enable_all_topic_list = setting(True, "Serve the list of all topics.", live=True)
    enable_topic_list = setting(True, "Serve the lists of topics by cluster and by unit.", live=True)
    need_wait_for_service = setting(False, "Answer no route questions during the first seconds.", live=True)
    wait_seconds_for_service = setting(45, "How many seconds those are.", low=0, high=3600, live=True)

    def check(self) -> list[str]:
        """Rules between settings."""
        problems = check_listeners(self.listeners)
        if not self.bind_address:
            problems.append("bindAddress must not be empty; 0.0.0.0 stands for all addresses")
        if not self.kv_config_path:
            problems.append("kvConfigPath must not be empty; it names a file, which need not be there yet")
        return problems
