"""Headers of users and access rules: 3001 to 3010."""

from __future__ import annotations

from aerobee.protocol.headers import Header


class CreateUser(Header, frozen=True):
    """AUTH_CREATE_USER."""

    username: str | None = None


class UpdateUser(Header, frozen=True):
    """AUTH_UPDATE_USER."""

    username: str | None = None


class DeleteUser(Header, frozen=True):
    """AUTH_DELETE_USER."""

    username: str | None = None


class GetUser(Header, frozen=True):
    """AUTH_GET_USER."""

    username: str | None = None


class ListUsers(Header, frozen=True):
    """AUTH_LIST_USER."""

    filter: str | None = None


class CreateAcl(Header, frozen=True):
    """AUTH_CREATE_ACL."""

    subject: str | None = None


class UpdateAcl(Header, frozen=True):
    """AUTH_UPDATE_ACL."""

    subject: str | None = None


class DeleteAcl(Header, frozen=True):
    """AUTH_DELETE_ACL."""

    subject: str | None = None
    policy_type: str | None = None
    resource: str | None = None


class GetAcl(Header, frozen=True):
    """AUTH_GET_ACL."""

    subject: str | None = None


class ListAcls(Header, frozen=True):
    """AUTH_LIST_ACL."""

    subject_filter: str | None = None
    resource_filter: str | None = None
