"""A client of the REST API, like one on a phone."""

import uuid
from typing import Any

import httpx

from deploy.demo.photos import Photo


class RequestFailed(Exception):
    """A request failed; the text contains the response."""


class Phone:
    """One person's session."""

    def __init__(self, http: httpx.AsyncClient, username: str) -> None:
        self._http = http
        self.username = username
        self.account_id = ""
        self._token = ""

    async def sign_up(self, password: str) -> None:
        answer = await self._call(
            "POST", "/v1/accounts", {"username": self.username, "password": password}
        )
        self.account_id = answer["account"]["accountId"]
        self._token = answer["session"]["accessToken"]

    async def follow(self, other: "Phone") -> None:
        await self._call("POST", f"/v1/accounts/{other.account_id}:follow", {})

    async def upload(self, photo: Photo) -> str:
        """Uploads a photo directly to S3; returns its media id."""
        upload = await self._call(
            "POST",
            "/v1/media/upload",
            {
                "contentType": photo.content_type,
                "sizeBytes": str(len(photo.content)),
                "requestId": str(uuid.uuid4()),
            },
        )
        sent = await self._http.post(
            upload["uploadUrl"], data=upload["formFields"], files={"file": photo.content}
        )
        if sent.is_error:
            raise RequestFailed(f"S3 returned {sent.status_code}: {sent.text}")
        media_id: str = upload["media"]["mediaId"]
        await self._call("POST", f"/v1/media/{media_id}:complete", {})
        return media_id

    async def post(self, media_id: str, caption: str) -> str:
        """Posts a photo; returns the post's id."""
        answer = await self._call(
            "POST",
            "/v1/posts",
            {"mediaIds": [media_id], "caption": caption, "requestId": str(uuid.uuid4())},
        )
        post_id: str = answer["post"]["postId"]
        return post_id

    async def see_post(self, post_id: str) -> Any:
        return (await self._call("GET", f"/v1/posts/{post_id}"))["post"]

    async def feed(self, page_size: int = 50) -> Any:
        return await self._call("GET", f"/v1/feed?pageSize={page_size}")

    async def _call(self, method: str, path: str, body: Any = None) -> Any:
        headers = {"authorization": f"Bearer {self._token}"} if self._token else {}
        answer = await self._http.request(method, path, json=body, headers=headers)
        if answer.is_error:
            raise RequestFailed(f"{method} {path} returned {answer.status_code}: {answer.text}")
        return answer.json()
