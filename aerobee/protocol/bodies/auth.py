# ruff: noqa: RUF012 - msgspec gives each object its own copy of an empty default
"""Users and access rules."""

from __future__ import annotations

from aerobee.protocol.bodies import Body


class UserInfo(Body):
    """A user. `user_type`: Super or Normal; `user_status`: enable or disable."""

    username: str | None = None
    password: str | None = None
    user_type: str | None = None
    user_status: str | None = None


class PolicyEntryInfo(Body):
    """Who may do what with a resource, from where."""

    resource: str | None = None
    actions: list[str] = []
    source_ips: list[str] = []
    decision: str | None = None


class PolicyInfo(Body):
    """Entries that count together. `policy_type`: Custom or Default."""

    policy_type: str | None = None
    entries: list[PolicyEntryInfo] = []


class AclInfo(Body):
    """The rules of one subject, such as `User:alice`."""

    subject: str | None = None
    policies: list[PolicyInfo] = []
