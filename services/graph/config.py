"""The graph service's settings."""

from pathlib import Path

from pydantic import Field, PositiveInt, ValidationInfo, field_validator

from services.chassis.config import (
    Addresses,
    CacheSettings,
    DatabaseSettings,
    KafkaSettings,
    MeshSettings,
)


class GraphSettings(MeshSettings, DatabaseSettings, CacheSettings, KafkaSettings):
    """Read from PHOTOMESH_* variables."""

    peer_account: Addresses
    page_key_file: Path
    """Contains the secret for page tokens, in hexadecimal."""
    follow_limit: PositiveInt = 7_500
    """Maximum number of accounts that one account may follow."""
    mute_limit: PositiveInt = 7_500
    """Maximum number of accounts that one account may mute. Each read of its feed checks all of
    them."""
    celebrity_promote_at: PositiveInt = 100_000
    """At this number of followers or more, an account's posts are pulled by readers instead of
    pushed."""
    celebrity_demote_below: PositiveInt = Field(default=90_000, validate_default=True)
    """Below this number of followers, the posts are pushed again. At most
    `celebrity_promote_at`."""

    @field_validator("celebrity_demote_below")
    @classmethod
    def _not_above_promotion(cls, value: int, info: ValidationInfo) -> int:
        if value > info.data.get("celebrity_promote_at", value):
            raise ValueError("must not be above PHOTOMESH_CELEBRITY_PROMOTE_AT")
        return value
