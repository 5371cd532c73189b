"""The name server's own settings over the wire: 318, 319.

Nothing that names a file, a command or an address can be changed this way: such rows say `remote=False`, and the
whole request is refused.
"""

from __future__ import annotations

import logging

from aerobee.errors import NoPermission, ServerSystemError
from aerobee.nameserver.handlers import Parts
from aerobee.net.listener import Connection
from aerobee.options import OptionsError, decode_text, properties_dict
from aerobee.protocol.command import RemotingCommand

_log = logging.getLogger("aerobee.nameserver.config")


async def update(parts: Parts, connection: Connection, request: RemotingCommand) -> RemotingCommand:
    """UPDATE_NAMESRV_CONFIG: all of the settings in the body, or none."""
    options = parts.options
    try:
        texts = properties_dict(decode_text(request.body))
    except OptionsError as error:
        raise ServerSystemError(str(error)) from None
    listed = {name.strip() for name in options.config_black_list.split(";")}
    refused = [key for key in texts if key in listed or (key in options.ROWS and not options.ROWS[key].remote)]
    refused += [key for key in texts if key in _APACHE_PATHS and key not in refused]
    if refused:
        _log.warning("%s tried to change %s", connection.peer, ", ".join(refused))
        raise NoPermission(f"Can not update config in black list. ({', '.join(refused)})")
    try:
        change = await options.change_and_keep(texts, options.config_store_path or None)
    except OptionsError as error:
        raise ServerSystemError(str(error)) from None
    parts.generation = (-1, -1)
    for name, value in (change.live | change.at_restart).items():
        _log.info(
            "%s set %s=%s%s", connection.peer, name, value, "" if name in change.live else ", from the next start"
        )
    for note in change.notes:
        _log.info("%s", note)
    if not change.not_kept:
        return request.reply()
    remark = f"changed until the next start only: {change.not_kept}"
    _log.warning("%s", remark)
    return request.reply(remark=remark)


def get(parts: Parts, connection: Connection, request: RemotingCommand) -> RemotingCommand:
    """GET_NAMESRV_CONFIG."""
    return request.reply(body=parts.options.to_properties().encode())


_APACHE_PATHS = frozenset({"rocketmqHome"})
"""Names of paths in Apache's configuration for which there is no row here."""
