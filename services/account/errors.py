"""Errors of the account service."""

import grpc

from services.chassis.errors import MeshError


class UsernameTaken(MeshError):
    """Another account has this username. Letter case is ignored."""

    code = grpc.StatusCode.ALREADY_EXISTS
    reason = "USERNAME_TAKEN"

    def __init__(self, username: str) -> None:
        super().__init__(
            f"The username {username} is taken.", fields={"username": "is taken; choose another"}
        )


class CredentialsWrong(MeshError):
    """No account has this username and password; the error does not reveal which is wrong."""

    code = grpc.StatusCode.UNAUTHENTICATED
    reason = "CREDENTIALS_WRONG"

    def __init__(self) -> None:
        super().__init__("The username or password is wrong.")


class RefreshTokenInvalid(MeshError):
    """The refresh token is unknown, expired, or was already used."""

    code = grpc.StatusCode.UNAUTHENTICATED
    reason = "REFRESH_TOKEN_INVALID"

    def __init__(self) -> None:
        super().__init__("The refresh token is not valid; sign in again.")
