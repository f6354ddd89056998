"""The names of accounts, which the account service stores and other services show."""

from collections.abc import Sequence

from photomesh.account.v1.account_internal_service_pb2 import BatchGetAccountsRequest
from photomesh.account.v1.account_internal_service_pb2_grpc import AccountInternalServiceStub
from photomesh.account.v1.account_service_pb2 import AccountSummary

from services.chassis.errors import MeshError
from services.chassis.rpc import client
from services.chassis.telemetry import logs

_WITHIN_SECONDS = 0.5

_log = logs.logger(__name__)


class AccountNames:
    """Looks up the names of accounts.

    While account is unavailable or stalls, names are empty, because content without names is better
    than none. Callers must not cache content that has an empty name.
    """

    def __init__(self, accounts: AccountInternalServiceStub) -> None:
        self._accounts = accounts

    async def of(self, account_ids: Sequence[int]) -> Sequence[AccountSummary]:
        """Returns a summary of each account, in the given order.

        The summary of an account that does not exist has no `account_id`.
        """
        if not account_ids:
            return []
        try:
            response = await client.call(
                self._accounts.BatchGetAccounts,
                BatchGetAccountsRequest(account_ids=account_ids),
                within=_WITHIN_SECONDS,
            )
        except (MeshError, client.PeerRefused) as error:
            _log.warning("names.omitted", error=repr(error))
            return [AccountSummary(account_id=account_id) for account_id in account_ids]
        return response.accounts
