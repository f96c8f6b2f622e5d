"""Conversions of users, sessions and API keys to the contract's messages."""

from auth_svc import sessions
from auth_svc.accounts import Role, User
from auth_svc.api_keys import ApiKey
from boxoffice.auth.v1 import (
    api_key_pb2,
    session_pb2,
    user_pb2,
)
from mesh.conversions import time_to_proto
from mesh.rpc.call import caller

LINK_SENT = "a link is on its way to the new address"

ROLES = {
    Role.CUSTOMER: user_pb2.User.CUSTOMER,
    Role.STAFF: user_pb2.User.STAFF,
    Role.ADMIN: user_pb2.User.ADMIN,
}
ROLES_FROM = {number: role for role, number in ROLES.items()}
"""ROLE_UNSPECIFIED has no entry."""


def user_to_proto(user: User) -> user_pb2.User:
    return user_pb2.User(
        user_id=str(user.user_id),
        email=user.email,
        full_name=user.full_name,
        phone=user.phone,
        address=user.address,
        role=ROLES[user.role],
        is_active=user.is_active,
        create_time=time_to_proto(user.create_time),
        update_time=time_to_proto(user.update_time),
        email_verify_time=time_to_proto(user.email_verify_time),
        delete_time=time_to_proto(user.delete_time),
        erase_time=time_to_proto(user.erase_time),
    )


def session_to_proto(session: sessions.Session) -> session_pb2.Session:
    return session_pb2.Session(
        session_id=str(session.session_id),
        is_current=session.session_id == caller().session_id,
        create_time=time_to_proto(session.create_time),
        refresh_time=time_to_proto(session.refresh_time),
        expire_time=time_to_proto(session.expire_time),
    )


def api_key_to_proto(key: ApiKey, text: str = "") -> api_key_pb2.ApiKey:
    """`text` is the key itself, which is shown once."""
    return api_key_pb2.ApiKey(
        api_key_id=str(key.api_key_id),
        name=key.name,
        role=ROLES[key.role],
        key=text,
        key_start=key.key_start,
        creator_id=str(key.creator_id),
        create_time=time_to_proto(key.create_time),
        expire_time=time_to_proto(key.expire_time),
        revoke_time=time_to_proto(key.revoke_time),
        last_use_time=time_to_proto(key.last_use_time),
    )
