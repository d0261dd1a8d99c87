"""`python -m deploy.copy_bucket FROM TO`: copies what is missing between a bucket (`s3://…` as LATEBIND_BLOBS_URL) and a folder.

Blobs are named by their content and never change, so what is there already is right, and a copy that broke off is simply repeated.
`rclone sync`, `mc mirror` or `aws s3 sync` do the same; this one needs nothing but what the server has.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import unquote, urlsplit

from minio import Minio

_AT_ONCE = 8


class Bucket:
    """A bucket by its URL."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self.name = parts.path.strip("/")
        self.client = Minio(
            parts.netloc.rpartition("@")[2],
            access_key=unquote(parts.username or ""),
            secret_key=unquote(parts.password or ""),
            secure=parts.scheme == "s3",
            region="us-east-1",
        )

    def names(self) -> Iterator[str]:
        """Names of all objects."""
        for one in self.client.list_objects(bucket_name=self.name, recursive=True):
            if one.object_name:
                yield one.object_name


def download(bucket: Bucket, folder: Path) -> int:
    """Copy objects that the folder lacks; returns how many. A file appears whole or not at all."""

    def fetch(key: str) -> None:
        target = folder / key
        partial = target.with_name(f".{target.name}.partial")
        target.parent.mkdir(parents=True, exist_ok=True)
        bucket.client.fget_object(bucket_name=bucket.name, object_name=key, file_path=str(partial))
        partial.replace(target)

    missing = [key for key in bucket.names() if not (folder / key).exists()]
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        list(pool.map(fetch, missing))
    return len(missing)


def upload(folder: Path, bucket: Bucket) -> int:
    """Copy files that the bucket lacks; returns how many. The bucket is made when it is not there."""
    if not bucket.client.bucket_exists(bucket_name=bucket.name):
        bucket.client.make_bucket(bucket_name=bucket.name)
    there = set(bucket.names())
    files = [path for path in folder.rglob("*") if path.is_file() and not path.name.endswith(".partial")]
    missing = [path for path in files if path.relative_to(folder).as_posix() not in there]

    def put(path: Path) -> None:
        bucket.client.fput_object(bucket_name=bucket.name, object_name=path.relative_to(folder).as_posix(), file_path=str(path))

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        list(pool.map(put, missing))
    return len(missing)


def main(source: str, target: str) -> int:
    """Copy one way or the other."""
    count = download(Bucket(source), Path(target)) if "://" in source else upload(Path(source), Bucket(target))
    print(f"{count} objects copied", file=sys.stderr)
    return 0


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(f"usage: {os.path.basename(sys.argv[0])} FROM TO")  # noqa: PTH119 - a name, no file
    sys.exit(main(*sys.argv[1:]))
