"""The account service's public methods, in the order of the contract."""

import secrets
from datetime import UTC, datetime, timedelta

from photomesh.account.v1 import account_service_pb2 as pb
from photomesh.account.v1.account_service_pb2_grpc import AccountServiceServicer

from services.account.errors import CredentialsWrong, RefreshTokenInvalid
from services.account.passwords import Passwords
from services.account.store import Account, AccountStore
from services.account.tokens import RefreshToken, Tokens, hash_secret, new_secret
from services.chassis.context import signed_in
from services.chassis.database.ids import SHARDS, created_at
from services.chassis.rpc import Context
from services.chassis.timestamps import to_timestamp
from services.domain.errors import AccountUnknown


class AccountService(AccountServiceServicer):
    """Accounts and sessions: the public methods."""

    def __init__(
        self,
        store: AccountStore,
        passwords: Passwords,
        tokens: Tokens,
        *,
        access_token_life: timedelta,
        refresh_token_life: timedelta,
    ) -> None:
        self._store = store
        self._passwords = passwords
        self._tokens = tokens
        self._access_token_life = access_token_life
        self._refresh_token_life = refresh_token_life

    async def CreateAccount(
        self, request: pb.CreateAccountRequest, context: Context
    ) -> pb.CreateAccountResponse:
        account = await self._store.add_account(
            shard=secrets.randbelow(SHARDS),
            username=request.username,
            password_hash=await self._passwords.hash(request.password),
        )
        return pb.CreateAccountResponse(
            account=_to_pb(account), session=await self._open_session(account.account_id)
        )

    async def GetMe(self, request: pb.GetMeRequest, context: Context) -> pb.GetMeResponse:
        account = await self._store.account(signed_in())
        if account is None:
            raise AccountUnknown(signed_in())
        return pb.GetMeResponse(account=_to_pb(account))

    async def CreateSession(
        self, request: pb.CreateSessionRequest, context: Context
    ) -> pb.CreateSessionResponse:
        account = await self._store.account_by_username(request.username)
        stored = account.password_hash if account else None
        if not await self._passwords.matches(request.password, stored) or account is None:
            raise CredentialsWrong
        return pb.CreateSessionResponse(
            account=_to_pb(account), session=await self._open_session(account.account_id)
        )

    async def RefreshSession(
        self, request: pb.RefreshSessionRequest, context: Context
    ) -> pb.RefreshSessionResponse:
        old = self._tokens.open_refresh_token(request.refresh_token)
        secret = new_secret()
        expire_time = datetime.now(UTC) + self._refresh_token_life
        rotated = await self._store.rotate_session(
            old.account_id,
            old.session_id,
            old_hash=hash_secret(old.secret),
            new_hash=hash_secret(secret),
            expire_time=expire_time,
        )
        if not rotated:
            # An old token was reused, so it may have been stolen. End the session for both the
            # client and a possible thief.
            await self._store.end_session(old.account_id, old.session_id)
            raise RefreshTokenInvalid
        new = RefreshToken(old.account_id, old.session_id, secret)
        return pb.RefreshSessionResponse(session=self._session_pb(new, expire_time))

    async def _open_session(self, account_id: int) -> pb.Session:
        secret = new_secret()
        expire_time = datetime.now(UTC) + self._refresh_token_life
        session_id = await self._store.add_session(account_id, hash_secret(secret), expire_time)
        return self._session_pb(RefreshToken(account_id, session_id, secret), expire_time)

    def _session_pb(self, refresh_token: RefreshToken, expire_time: datetime) -> pb.Session:
        access_expire_time = datetime.now(UTC) + self._access_token_life
        return pb.Session(
            access_token=self._tokens.access_token(refresh_token.account_id, access_expire_time),
            access_token_expire_time=to_timestamp(access_expire_time),
            refresh_token=self._tokens.refresh_token(refresh_token),
            refresh_token_expire_time=to_timestamp(expire_time),
        )


def _to_pb(account: Account) -> pb.Account:
    return pb.Account(
        account_id=account.account_id,
        username=account.username,
        create_time=to_timestamp(created_at(account.account_id)),
    )
