"""Headers of transactions: the half message's end, and the question about it."""

from __future__ import annotations

from aerobee.protocol.headers import Header, Int32, Int64


class EndTransaction(Header, frozen=True):
    """END_TRANSACTION. `commit_or_rollback`: 8 commit, 12 roll back, 0 not known yet."""

    producer_group: str
    tran_state_table_offset: Int64
    commit_log_offset: Int64
    commit_or_rollback: Int32
    from_transaction_check: bool = False
    msg_id: str | None = None
    transaction_id: str | None = None
    topic: str | None = None


class CheckTransactionState(Header, frozen=True):
    """CHECK_TRANSACTION_STATE: a broker asks how the local transaction ended (body: the half record)."""

    tran_state_table_offset: Int64
    commit_log_offset: Int64
    topic: str | None = None
    msg_id: str | None = None
    transaction_id: str | None = None
    offset_msg_id: str | None = None


class ResumeCheckHalfMessage(Header, frozen=True):
    """RESUME_CHECK_HALF_MESSAGE."""

    topic: str | None = None
    msg_id: str | None = None
