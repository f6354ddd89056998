"""Hashing passwords with argon2id, beside the event loop."""

import asyncio
from concurrent.futures import ThreadPoolExecutor

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError


class Passwords:
    """Makes and checks argon2id hashes (RFC 9106's second recommended parameters: 64 MiB).

    A few at a time: each takes 64 MiB and a core for tens of milliseconds, so a burst of
    sign-ins waits in line instead of taking the memory of the whole process.
    """

    def __init__(self, at_a_time: int = 2) -> None:
        self._hasher = PasswordHasher()
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
