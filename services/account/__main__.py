"""`python -m services.account`: wires the account service and serves it."""

from services.account.config import AccountSettings
from services.account.internal import AccountInternalService
from services.account.passwords import Passwords
from services.account.service import AccountService
from services.account.store import AccountStore
from services.account.tokens import Tokens
from services.chassis import config
from services.chassis.database.pool import Database
from services.chassis.rpc.server import Service, run, serve
from services.chassis.telemetry import logs


async def main() -> None:
    settings = config.load(AccountSettings)
    logs.configure("account", settings.log_level)
    async with Database(settings) as database:
        store = AccountStore(database)
        public = AccountService(
            store,
            Passwords(),
            Tokens(settings.token_key_file),
            access_token_life=settings.access_token_life,
            refresh_token_life=settings.refresh_token_life,
        )
        internal = AccountInternalService(store)
        await serve(
            settings,
            [
                Service("photomesh.account.v1.AccountService", public),
                Service("photomesh.account.v1.AccountInternalService", internal),
            ],
        )


run(main)
