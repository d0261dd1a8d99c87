"""Blobs in any S3-compatible store (the `minio` SDK): `<bucket>/<namespace>/<first two digits>/<sha256>`.

URL: `s3://key:secret@host/bucket?region=…&public_url=https://…`, `s3+http://` without TLS. A stream is hashed into a temporary file and
sent only when it is what was announced, so no key ever shows other bytes than its name says; sending the same blob twice is harmless.
The SDK is synchronous: it runs in a bounded number of threads, with as many connections.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import tempfile
import threading
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any, TypeVar
from urllib.parse import SplitResult, unquote, urlsplit

import urllib3
from minio import Minio
from minio.commonconfig import ENABLED, Filter
from minio.error import InvalidResponseError, S3Error, ServerError
from minio.lifecycleconfig import AbortIncompleteMultipartUpload, LifecycleConfig, Rule

from kit.blobs import BlobInfo, BlobNotFound, arrival, naming
from kit.blobs.arrival import CHUNK_BYTES
from kit.blobs.examination import examine_use
from kit.checks import Findings, fault, note, ok
from kit.errors import Unavailable
from kit.logs import get_logger
from kit.silence import Silent, Threads
from kit.url_options import read_options

#: Larger blobs are sent in parts of this size; the SDK holds one part in memory. 10,000 parts make 160 GiB.
_PART_BYTES = 16 << 20
#: Blobs up to this size wait in memory instead of a temporary file.
_IN_MEMORY_BYTES = 1 << 20
_PING_S = 1.0
#: How long a call waits for a thread, and how long one may take that tries a silent store for all.
_WAIT_S, _TRIAL_S = 5.0, 20.0
_UNFINISHED_DAYS = 2
_MISSING = frozenset({"NoSuchKey", "NoSuchObject", "NotFound", "404"})
_BUCKET_THERE = frozenset({"BucketAlreadyOwnedByYou", "BucketAlreadyExists"})
#: Codes of a refusal -> what to do about it.
_ADVICE = {
    "InvalidAccessKeyId": "the store does not know the access key of LATEBIND_BLOBS_URL",
    "SignatureDoesNotMatch": "the secret key of LATEBIND_BLOBS_URL is wrong (special characters are written as %XX)",
    "AccessDenied": "the secret key is wrong, or the key lacks the right to list, put, get and delete objects of the bucket",
    "AuthorizationHeaderMalformed": "set region in LATEBIND_BLOBS_URL to the region of the bucket",
    "PermanentRedirect": "set region in LATEBIND_BLOBS_URL to the region of the bucket",
    "RequestTimeTooSkewed": "let a time service (chrony, systemd-timesyncd) set the clocks of all machines",
}

log = get_logger(__name__)
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class S3Options:
    """What stands in the query of the URL. Times in seconds."""

    region: str = "us-east-1"
    #: Address under which devices reach the store, when it is not the one that the services use.
    public_url: str = ""
    threads: int = 16
    connect_s: float = 1.0
    read_s: float = 10.0


@contextmanager
def _as_ours() -> Iterator[None]:
    try:
        yield
    except S3Error as error:
        if error.code in _MISSING:
            raise BlobNotFound("there is no such blob") from None
        log.warning("the blob store refused", code=error.code)
        raise Unavailable(f"the blob store refuses with {error.code}") from error
    except (Silent, InvalidResponseError, ServerError, urllib3.exceptions.HTTPError, OSError) as error:
        raise Unavailable("the blob store cannot be reached now; try again") from error


class _Spool:
    """Collects a stream and its digest. The lock lets a cancelled request give it up while a thread still writes."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._hash = hashlib.sha256()
        self.file = tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY_BYTES)  # noqa: SIM115 - closed by `close`
        self.size = 0

    def write(self, chunks: list[bytes]) -> None:
        with self._lock:
            for chunk in chunks:
                self._hash.update(chunk)
                self.file.write(chunk)
                self.size += len(chunk)

    def info(self) -> BlobInfo:
        return BlobInfo(self._hash.hexdigest(), self.size)

    def close(self) -> None:
        with self._lock:
            self.file.close()


class S3Blobs:
    """See `kit.blobs.BlobStore`. Made by `open_s3_blobs`; connects at the first use, and makes its bucket then."""

    def __init__(self, clients: tuple[Minio, Minio, Minio], bucket: str, threads: int) -> None:
        self._client, self._quick, self._public = clients
        self._bucket = bucket
        self._threads = Threads("s3", threads, wait_s=_WAIT_S, trial_s=_TRIAL_S, is_silent=_is_silent)
        self._bucket_made = False
        self._making = threading.Lock()

    async def put(self, namespace: str, chunks: AsyncIterable[bytes], *, sha256: str | None = None, size: int | None = None) -> BlobInfo:
        """Store a stream; see `kit.blobs.BlobStore`. Raises `Invalid` for a `sha256` that is not one."""
        naming.check_namespace(namespace)
        arrival.check_announced_digest(sha256)
        spool = _Spool()
        try:
            await arrival.receive(chunks, size=size, write=lambda some: self._write(spool, some))
            info = spool.info()
            arrival.check_arrived(info, sha256, size)
            await self._run(lambda: self._send(namespace, info, spool))
            return info
        finally:
            await asyncio.to_thread(spool.close)

    async def _write(self, spool: _Spool, chunks: list[bytes]) -> None:
        await asyncio.to_thread(spool.write, chunks)

    def _send(self, namespace: str, info: BlobInfo, spool: _Spool) -> None:
        key = _key(namespace, info.sha256)
        self._make_bucket()
        with contextlib.suppress(S3Error):
            if self._client.stat_object(bucket_name=self._bucket, object_name=key).size == info.size:
                return  # the same bytes: the key is their digest
        spool.file.seek(0)
        self._client.put_object(
            bucket_name=self._bucket, object_name=key, data=spool.file, length=info.size, part_size=_PART_BYTES, num_parallel_uploads=1
        )

    async def open(self, namespace: str, sha256: str, *, start: int = 0, length: int | None = None) -> AsyncIterator[bytes]:
        """Iterate over the bytes in pieces of `CHUNK_BYTES`; see `kit.blobs.BlobStore`."""
        info = await self.stat(namespace, sha256)
        left = max(0, info.size - start) if length is None else min(length, max(0, info.size - start))
        if not left:
            return
        part = {"bucket_name": self._bucket, "object_name": _key(namespace, sha256), "offset": start, "length": left}
        response: Any = await self._run(lambda: self._client.get_object(**part))
        try:
            while left:
                chunk: bytes = await self._run(partial(response.read, min(CHUNK_BYTES, left)))
                if not chunk:
                    raise Unavailable("the blob store closed the connection in the middle of a blob")
                left -= len(chunk)
                yield chunk
        finally:
            # Not awaited: whoever stopped reading need not wait for a read that is under way.
            with contextlib.suppress(RuntimeError):
                self._threads.submit(partial(_finish, response, whole=not left))

    async def stat(self, namespace: str, sha256: str) -> BlobInfo:
        """Return size and digest; see `kit.blobs.BlobStore`."""
        key = _key(namespace, sha256)
        found = await self._run(lambda: self._found(key))
        return BlobInfo(sha256, int(found.size))

    def _found(self, key: str) -> Any:
        self._make_bucket()
        return self._client.stat_object(bucket_name=self._bucket, object_name=key)

    async def delete(self, namespace: str, sha256: str) -> None:
        """Remove a blob; see `kit.blobs.BlobStore`."""
        key = _key(namespace, sha256)

        def remove() -> None:
            self._make_bucket()
            self._client.remove_object(bucket_name=self._bucket, object_name=key)

        await self._run(remove)

    async def link(self, namespace: str, sha256: str, *, expires_in_s: int) -> str:
        """Return a presigned GET on the store's public address; see `kit.blobs.BlobStore`."""
        await self.stat(namespace, sha256)
        # Signing asks nobody: the region is given.
        link: str = self._public.presigned_get_object(
            bucket_name=self._bucket,
            object_name=_key(namespace, sha256),
            expires=timedelta(seconds=expires_in_s),
            # A browser that follows a link saves the file instead of showing it.
            response_headers={"response-content-type": "application/octet-stream", "response-content-disposition": "attachment"},
        )
        return link

    async def ping(self) -> None:
        """Raise `Unavailable` when the store does not answer within a second, or refuses us."""
        await self._run(lambda: self._quick.bucket_exists(bucket_name=self._bucket))

    async def examine(self) -> Findings:
        """Ask for the bucket, then use the store; see `kit.blobs.BlobStore`."""
        try:
            there = await self._run(lambda: self._quick.bucket_exists(bucket_name=self._bucket))
        except Unavailable as refused:
            code = getattr(refused.__cause__, "code", "")
            yield fault("bucket", refused.detail, _ADVICE.get(code, "check host, port, scheme and keys of LATEBIND_BLOBS_URL"))
            return
        if there:
            yield ok("bucket", f"{self._bucket} is there")
        else:
            advice = "if there were blobs before, LATEBIND_BLOBS_URL names another"
            yield note("bucket", f"{self._bucket} was not there and is made now", advice)
        async for finding in examine_use(self):
            yield finding

    def close(self) -> None:
        """End the threads after what they do now."""
        self._threads.close()

    def _make_bucket(self) -> None:
        with self._making:
            if self._bucket_made:
                return
            if not self._client.bucket_exists(bucket_name=self._bucket):
                try:
                    self._client.make_bucket(bucket_name=self._bucket)
                except S3Error as error:
                    if error.code not in _BUCKET_THERE:
                        raise
                else:
                    self._forget_unfinished()
            self._bucket_made = True

    def _forget_unfinished(self) -> None:
        """Have the store delete the parts of uploads that a killed process left behind. MinIO does so by itself and refuses the rule."""
        abort = AbortIncompleteMultipartUpload(days_after_initiation=_UNFINISHED_DAYS)
        rule = Rule(rule_id="unfinished", rule_filter=Filter(prefix=""), status=ENABLED, abort_incomplete_multipart_upload=abort)
        try:
            self._client.set_bucket_lifecycle(bucket_name=self._bucket, config=LifecycleConfig([rule]))
        except S3Error as error:
            log.info("the blob store takes no rule for unfinished uploads", code=error.code)

    async def _run(self, work: Callable[[], T]) -> T:
        with _as_ours():
            return await self._threads.run(work)


def _key(namespace: str, sha256: str) -> str:
    return f"{naming.check_namespace(namespace)}/{naming.check_digest(sha256)[:2]}/{sha256}"


def _finish(response: Any, *, whole: bool) -> None:
    """Give the connection back when it was read to the end, else close it: it still holds bytes that nobody wants."""
    if whole:
        response.release_conn()
    else:
        response.close()


@asynccontextmanager
async def open_s3_blobs(url: str) -> AsyncIterator[S3Blobs]:
    """Open the bucket of an `s3://` or `s3+http://` URL. Raises `ValueError` for a URL without keys, host or bucket."""
    parts = urlsplit(url)
    bucket = parts.path.strip("/")
    if not parts.hostname or not parts.username or not parts.password or not bucket or "/" in bucket:
        raise ValueError("an S3 URL names keys, host and bucket: s3://key:secret@host:9000/bucket")
    options = read_options(S3Options, parts.query, "an S3 URL")
    public = urlsplit(options.public_url) if options.public_url else parts
    clients = (_client(parts, parts, options), _client(parts, parts, options, quick=True), _client(parts, public, options))
    blobs = S3Blobs(clients, bucket, options.threads)
    try:
        yield blobs
    finally:
        await asyncio.to_thread(blobs.close)


class _Retry(urllib3.Retry):
    """Repeats what broke, never what was silent: that would be as silent again."""

    def increment(self, method: str | None = None, url: str | None = None, *rest: Any, **named: Any) -> _Retry:
        """Return the counters after a failure, or raise it."""
        error = named.get("error")
        if isinstance(error, urllib3.exceptions.ReadTimeoutError):
            raise error
        return super().increment(method, url, *rest, **named)


def _is_silent(error: Exception) -> bool:
    reason = getattr(error, "reason", error)  # of a call that was tried several times
    return isinstance(reason, urllib3.exceptions.TimeoutError)


def _client(keys: SplitResult, place: SplitResult, options: S3Options, *, quick: bool = False) -> Minio:
    timeout = urllib3.Timeout(connect=_PING_S, read=_PING_S) if quick else urllib3.Timeout(connect=options.connect_s, read=options.read_s)
    retries = False if quick else _Retry(2, read=1, backoff_factor=0.2, status_forcelist=(500, 502, 503, 504))
    default_port = 443 if place.scheme in {"s3", "https"} else 80
    return Minio(
        f"{place.hostname}:{place.port or default_port}",
        access_key=unquote(keys.username or ""),
        secret_key=unquote(keys.password or ""),
        secure=default_port == 443,
        region=options.region,
        http_client=urllib3.PoolManager(timeout=timeout, maxsize=options.threads, retries=retries),
    )
