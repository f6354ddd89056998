"""Calls to account."""

from photomesh.account.v1.account_internal_service_pb2 import BatchGetAccountsRequest
from photomesh.account.v1.account_internal_service_pb2_grpc import AccountInternalServiceStub

from services.chassis.rpc.client import call
from services.domain.account_names import AccountNames
from services.domain.errors import AccountUnknown


class Peers:
    """Graph's client for account."""

    def __init__(self, account: AccountInternalServiceStub) -> None:
        self.names = AccountNames(account)
        self._account = account

    async def check_account(self, account_id: int) -> None:
        """Checks that an account exists.

        Raises:
            AccountUnknown: it does not.
            Unavailable: account is unavailable, slow or overloaded.
        """
        request = BatchGetAccountsRequest(account_ids=[account_id])
        if not (await call(self._account.BatchGetAccounts, request)).accounts[0].account_id:
            raise AccountUnknown(account_id)
