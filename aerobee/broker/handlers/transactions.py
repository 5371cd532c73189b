"""Ends of transactions, and an operator's second chance for those that were given up."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aerobee.broker.records import TRANSACTION_BITS, parse_record
from aerobee.broker.topics import HALF_TOPIC
from aerobee.broker.transactions import CHECK_TIMES
from aerobee.errors import ServerError
from aerobee.net.connection import Connection
from aerobee.protocol.codes import RequestCode, ResponseCode
from aerobee.protocol.command import RemotingCommand
from aerobee.protocol.headers.transactions import EndTransaction, ResumeCheckHalfMessage
from aerobee.protocol.message import parse_offset_message_id

if TYPE_CHECKING:
    from aerobee.broker.server import Broker


async def end_transaction(broker: Broker, _: Connection, command: RemotingCommand) -> RemotingCommand:
    """END_TRANSACTION; Java's client sends it oneway and never hears what became of it."""
    header = command.header(EndTransaction)
    await broker.transactions.end(
        header.producer_group,
        header.tran_state_table_offset,
        header.commit_log_offset,
        header.commit_or_rollback,
        from_check=header.from_transaction_check,
    )
    return command.reply()


async def resume_check(broker: Broker, _: Connection, command: RemotingCommand) -> RemotingCommand:
    """RESUME_CHECK_HALF_MESSAGE: put a half that was given up back, as if it had never been asked about."""
    header = command.header(ResumeCheckHalfMessage)
    try:
        position = parse_offset_message_id(header.msg_id or "")[1]
        data = broker.store.record(position)
        if data is None:
            raise ValueError("no record there")
        half = parse_record(data)
    except ValueError as error:
        raise ServerError(
            ResponseCode.SYSTEM_ERROR,
            f"Exception was thrown when putting message back to {HALF_TOPIC}: {error}",
        ) from None
    properties = {**half.properties, CHECK_TIMES: "0"}
    await broker.store.put(
        half.to_record(HALF_TOPIC, 0, properties=properties, sys_flag=half.sys_flag & ~TRANSACTION_BITS)
    )
    return command.reply()


HANDLERS = {
    RequestCode.END_TRANSACTION: end_transaction,
    RequestCode.RESUME_CHECK_HALF_MESSAGE: resume_check,
}
