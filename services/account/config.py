"""The account service's settings."""

from datetime import timedelta
from pathlib import Path

from services.chassis.config import DatabaseSettings, MeshSettings


class AccountSettings(MeshSettings, DatabaseSettings):
    """Read from PHOTOMESH_* variables."""

    token_key_file: Path
    """The Ed25519 private key, in PEM, that signs access tokens."""
    access_token_life: timedelta = timedelta(minutes=15)
    refresh_token_life: timedelta = timedelta(days=30)
