"""Conversions of users and sessions to the contract's messages."""

from auth_svc import sessions
from auth_svc.accounts import Role, User
from boxoffice.auth.v1 import (
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
    )


def session_to_proto(session: sessions.Session) -> session_pb2.Session:
    return session_pb2.Session(
        session_id=str(session.session_id),
        is_current=session.session_id == caller().session_id,
        create_time=time_to_proto(session.create_time),
        refresh_time=time_to_proto(session.refresh_time),
        expire_time=time_to_proto(session.expire_time),
    )
