"""Hashes passwords with argon2id in threads, outside the event loop."""

import asyncio
from concurrent.futures import ThreadPoolExecutor

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError


class Passwords:
    """Creates and verifies argon2id hashes. Each takes 19 MiB and one core for about 20 ms.

    The parameters are OWASP's (Password Storage Cheat Sheet: 19 MiB, 2 passes, 1 lane). Those of
    RFC 9106 take five times as long, which at millions of sign-ins a day requires many machines.

    Only a few threads hash, so that a burst of sign-ins is queued instead of taking all cores.
    """

    def __init__(self, at_a_time: int = 2) -> None:
        self._hasher = PasswordHasher(time_cost=2, memory_cost=19 * 1024, parallelism=1)
        self._threads = ThreadPoolExecutor(at_a_time, thread_name_prefix="argon2")
        # Verified if the account does not exist, so that response times do not reveal it.
        self._dummy_hash = self._hasher.hash("dummy")

    async def hash(self, password: str) -> str:
        """Returns a salted hash of a password."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, self._hasher.hash, password)

    async def matches(self, password: str, password_hash: str | None) -> bool:
        """Reports whether a hash is of this password; for None, returns False in the same time."""
        loop = asyncio.get_running_loop()
        is_match = await loop.run_in_executor(
            self._threads, self._verify, password_hash or self._dummy_hash, password
        )
        return is_match and password_hash is not None

    def _verify(self, password_hash: str, password: str) -> bool:
        try:
            return self._hasher.verify(password_hash, password)
        except (VerificationError, InvalidHashError):
            return False
