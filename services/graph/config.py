"""The graph service's settings."""

from pathlib import Path

from pydantic import Field, PositiveInt, ValidationInfo, field_validator

from services.common.config import (
    Address,
    CacheSettings,
    DatabaseSettings,
    KafkaSettings,
    MeshSettings,
)


class GraphSettings(MeshSettings, DatabaseSettings, CacheSettings, KafkaSettings):
    """Read from PHOTOMESH_* variables."""

    peer_account: Address
    page_key_file: Path
    """Holds the secret of page tokens as hexadecimal text."""
    follow_limit: PositiveInt = 7_500
    """How many accounts one may follow."""
    mute_limit: PositiveInt = 7_500
    """How many one may mute. All of them are looked at whenever their muter's feed is read."""
    celebrity_promote_at: PositiveInt = 100_000
    """From how many followers on an account's posts are pulled by readers, no longer pushed."""
    celebrity_demote_below: PositiveInt = Field(default=90_000, validate_default=True)
    """Below how many followers they are pushed again."""

    @field_validator("celebrity_demote_below")
    @classmethod
    def _not_above_promotion(cls, value: int, info: ValidationInfo) -> int:
        if value > info.data.get("celebrity_promote_at", value):
            raise ValueError("must not be above PHOTOMESH_CELEBRITY_PROMOTE_AT")
        return value
