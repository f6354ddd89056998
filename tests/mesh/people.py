"""A user with a phone, who uses the mesh only over HTTP through the gateway."""

import asyncio
import itertools
import secrets
import time
from collections.abc import AsyncIterator
from typing import Any

import httpx

from tests.eventually import PATIENCE_SECONDS, eventually

_UNAVAILABLE = (502, 503, 504)
_numbers = itertools.count(1)


class ApiError(Exception):
    """The error response of a call."""

    def __init__(self, response: httpx.Response) -> None:
        super().__init__(
            f"{response.request.method} {response.url}: {response.status_code} {response.text}"
        )
        self.status = response.status_code
        body = response.json()
        self.body = body
        details = {detail["@type"].rpartition(".")[2]: detail for detail in body["details"]}
        self.reason: str = details["ErrorInfo"]["reason"]
        self.fields: dict[str, str] = {
            violation["field"]: violation["description"]
            for violation in details.get("BadRequest", {}).get("fieldViolations", [])
        }


class Person:
    """One user of the API. Retries calls that are safe to retry, as a good client does."""

    def __init__(self, http: httpx.AsyncClient, *, patience: float = 0.0) -> None:
        """`patience`: for how many seconds calls to an unavailable service are retried."""
        self.http = http
        self.username = f"person{next(_numbers)}.{secrets.token_hex(4)}"
        self.password = secrets.token_hex(8)
        self.patience = patience
        self.account_id = 0
        self.token = ""

    async def call(self, method: str, path: str, body: Any = None, **parameters: Any) -> Any:
        """Sends one request and returns the JSON of the response."""
        deadline = time.monotonic() + self.patience
        while True:
            try:
                response = await self.http.request(
                    method,
                    path,
                    json=body,
                    params=parameters,
                    headers={"authorization": f"Bearer {self.token}"} if self.token else {},
                )
                if response.status_code not in _UNAVAILABLE or time.monotonic() > deadline:
                    break
            except httpx.TransportError:
                if time.monotonic() > deadline:
                    raise
            await asyncio.sleep(0.1)
        if response.is_error:
            raise ApiError(response)
        return response.json()

    async def sign_up(self) -> "Person":
        try:
            answer = await self.call(
                "POST", "/v1/accounts", {"username": self.username, "password": self.password}
            )
        except ApiError as error:
            # The service died after it handled an earlier attempt.
            if error.reason != "USERNAME_TAKEN" or not self.patience:
                raise
            answer = await self.call(
                "POST", "/v1/sessions", {"username": self.username, "password": self.password}
            )
        self.account_id = int(answer["account"]["accountId"])
        self.token = answer["session"]["accessToken"]
        return self

    async def follow(self, other: "Person") -> None:
        await self.call("POST", f"/v1/accounts/{other.account_id}:follow", {})

    async def unfollow(self, other: "Person") -> None:
        await self.call("POST", f"/v1/accounts/{other.account_id}:unfollow", {})

    async def open_upload(self, size: int, content_type: str = "image/jpeg") -> Any:
        return await self.call(
            "POST",
            "/v1/media/upload",
            {
                "contentType": content_type,
                "sizeBytes": str(size),
                "requestId": secrets.token_hex(16),
            },
        )

    async def send_file(self, upload: Any, file: bytes) -> httpx.Response:
        """Sends the bytes directly to S3 with the form of the upload."""
        async with httpx.AsyncClient(timeout=PATIENCE_SECONDS) as s3:
            return await s3.post(
                upload["uploadUrl"], data=upload["formFields"], files={"file": file}
            )

    async def upload(self, file: bytes, content_type: str = "image/jpeg") -> str:
        """Uploads and completes a file; returns the media id."""
        upload = await self.open_upload(len(file), content_type)
        sent = await self.send_file(upload, file)
        assert sent.status_code in (200, 201, 204), sent.text
        media_id: str = upload["media"]["mediaId"]
        await self.complete(media_id)
        return media_id

    async def complete(self, media_id: str) -> None:
        await self.call("POST", f"/v1/media/{media_id}:complete", {})

    async def media(self, media_id: str) -> Any:
        return (await self.call("GET", f"/v1/media/{media_id}"))["media"]

    async def delete_media(self, media_id: str) -> Any:
        return (await self.call("DELETE", f"/v1/media/{media_id}"))["media"]

    async def processed(self, media_id: str) -> Any:
        """Waits until a media item is READY or FAILED and returns it."""
        return await eventually(
            lambda: self.media(media_id),
            lambda media: media["state"] in ("MEDIA_STATE_READY", "MEDIA_STATE_FAILED"),
        )

    async def post(self, *media_ids: str, caption: str = "", request_id: str = "") -> Any:
        body = {
            "mediaIds": media_ids,
            "caption": caption,
            "requestId": request_id or secrets.token_hex(16),
        }
        return (await self.call("POST", "/v1/posts", body))["post"]

    async def see_post(self, post_id: str) -> Any:
        return (await self.call("GET", f"/v1/posts/{post_id}"))["post"]

    async def get(self, path: str) -> httpx.Response:
        """GETs a path with its query. Returns the response even if it is an error."""
        return await self.http.get(path, headers={"authorization": f"Bearer {self.token}"})

    async def feed(self, **parameters: Any) -> Any:
        return await self.call("GET", "/v1/feed", **parameters)

    async def whole_feed(self, page_size: int = 20) -> AsyncIterator[Any]:
        """Yields the posts of every page."""
        token = ""
        while True:
            page = await self.feed(pageSize=page_size, pageToken=token)
            for post in page["posts"]:
                yield post
            token = page["nextPageToken"]
            if not token:
                return
