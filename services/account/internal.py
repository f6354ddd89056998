"""The account service's internal methods, in the order of the contract."""

from photomesh.account.v1 import account_internal_service_pb2 as pb
from photomesh.account.v1.account_internal_service_pb2_grpc import AccountInternalServiceServicer

from services.account.store import AccountStore
from services.chassis.rpc import Context


class AccountInternalService(AccountInternalServiceServicer):
    """Accounts: the internal methods."""

    def __init__(self, store: AccountStore) -> None:
        self._store = store

    async def BatchGetAccounts(
        self, request: pb.BatchGetAccountsRequest, context: Context
    ) -> pb.BatchGetAccountsResponse:
        found = await self._store.accounts(request.account_ids)
        response = pb.BatchGetAccountsResponse()
        for account_id in request.account_ids:
            account = found.get(account_id)
            response.accounts.add(
                account_id=account.account_id if account else 0,
                username=account.username if account else "",
            )
        return response
