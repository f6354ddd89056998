"""What can go wrong with accounts and sessions."""

import grpc

from services.common.errors import MeshError


class UsernameTaken(MeshError):
    """Another account has this username, in any letter case."""

    code = grpc.StatusCode.ALREADY_EXISTS
    reason = "USERNAME_TAKEN"

    def __init__(self, username: str) -> None:
        super().__init__(
            f"The username {username} is taken.", fields={"username": "is taken; choose another"}
        )


class CredentialsWrong(MeshError):
    """No account has this username and this password; which of the two is not told."""

    code = grpc.StatusCode.UNAUTHENTICATED
    reason = "CREDENTIALS_WRONG"

    def __init__(self) -> None:
        super().__init__("The username or the password is wrong.")


class RefreshTokenInvalid(MeshError):
    """The refresh token is unknown, too old, or was used before."""

    code = grpc.StatusCode.UNAUTHENTICATED
    reason = "REFRESH_TOKEN_INVALID"

    def __init__(self) -> None:
        super().__init__("The refresh token is not valid; sign in again.")
