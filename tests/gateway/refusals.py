"""The error of a JSON response."""

from dataclasses import dataclass

import httpx


@dataclass(frozen=True)
class Refusal:
    status: int
    code: int
    reason: str
    # Field -> description of the violation.
    fields: dict[str, str]

    @classmethod
    def of(cls, response: httpx.Response) -> "Refusal":
        assert response.headers["content-type"] == "application/json", response.text
        assert response.headers["cache-control"] == "no-store"
        body = response.json()
        assert body["message"]
        details = {detail["@type"]: detail for detail in body["details"]}
        info = details["type.googleapis.com/google.rpc.ErrorInfo"]
        assert info["domain"] == "photomesh"
        violations = details.get("type.googleapis.com/google.rpc.BadRequest", {})
        return cls(
            response.status_code,
            body["code"],
            info["reason"],
            {
                violation["field"]: violation["description"]
                for violation in violations.get("fieldViolations", [])
            },
        )
