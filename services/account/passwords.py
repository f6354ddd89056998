"""Hashing passwords with argon2id, beside the event loop."""

import asyncio
from concurrent.futures import ThreadPoolExecutor

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError


class Passwords:
    """Makes and checks argon2id hashes, each of which takes 19 MiB and one core for some 20 ms.

    The parameters are OWASP's (Password Storage Cheat Sheet: 19 MiB, 2 passes, 1 lane). RFC
    9106's take five times as long, which at millions of sign-ins a day is a lot of machines.

    A few at a time, so that a burst of sign-ins waits in line instead of taking all cores.
    """

    def __init__(self, at_a_time: int = 2) -> None:
        self._hasher = PasswordHasher(time_cost=2, memory_cost=19 * 1024, parallelism=1)
        self._threads = ThreadPoolExecutor(at_a_time, thread_name_prefix="argon2")
        # Checked when there is no such account, so that its absence cannot be timed.
        self._nobody = self._hasher.hash("nobody")

    async def hash(self, password: str) -> str:
        """Returns a salted hash of a password."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, self._hasher.hash, password)

    async def matches(self, password: str, password_hash: str | None) -> bool:
        """Tells whether a password is the hash's; never for None, which takes as long."""
        loop = asyncio.get_running_loop()
        right = await loop.run_in_executor(
            self._threads, self._verify, password_hash or self._nobody, password
        )
        return right and password_hash is not None

    def _verify(self, password_hash: str, password: str) -> bool:
        try:
            return self._hasher.verify(password_hash, password)
        except (VerificationError, InvalidHashError):
            return False
