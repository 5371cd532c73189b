"""How members of a group get a topic's messages: by pulling, which is all there is. Kept as `messageRequestMode.json`.

Apache's brokers know a second mode, POP; a request for it is refused, so that nobody believes it to be in force.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from aerobee.broker.config_file import ConfigFile
from aerobee.broker.topics import RETRY_PREFIX
from aerobee.errors import ServerError
from aerobee.protocol import fastjson
from aerobee.protocol.bodies.pop import MessageRequestModeSerializeWrapper, SetMessageRequestModeRequestBody
from aerobee.protocol.codes import ResponseCode

PULL: Final = "PULL"


class RequestModes:
    """Mode by topic and group; see the head of this file."""

    def __init__(self, config_dir: Path) -> None:
        self.file = ConfigFile(config_dir / "messageRequestMode.json", lambda: self.to_json(pretty=True))
        self.table: dict[str, dict[str, SetMessageRequestModeRequestBody]] = {}

    def load(self) -> None:
        """Reads the file, if there is one. Raises OSError."""
        data = self.file.load()
        if data:
            self.table = MessageRequestModeSerializeWrapper.from_dict(data).message_request_mode_map

    async def set(self, mode: SetMessageRequestModeRequestBody) -> None:
        """Sets the mode of a group on a topic. Raises ServerError when it is not served."""
        if mode.topic.startswith(RETRY_PREFIX):
            raise ServerError(ResponseCode.NO_PERMISSION, "retry topic is not allowed to set mode")
        if mode.mode != PULL:
            raise ServerError(ResponseCode.SYSTEM_ERROR, f"mode {mode.mode} is not served by this broker, only {PULL}")
        self.table.setdefault(mode.topic, {})[mode.consumer_group] = mode
        await self.file.save()

    def to_json(self, *, pretty: bool = False) -> bytes:
        """The file's content; also what GET_ALL_MESSAGE_REQUEST_MODE answers."""
        return fastjson.dumps(MessageRequestModeSerializeWrapper(message_request_mode_map=self.table), pretty=pretty)
