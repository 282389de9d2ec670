"""Locations, which never print a credential, and folders, whose files are whole or not there."""

from __future__ import annotations

import logging
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from functools import cache, lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any, NamedTuple
from urllib.parse import quote, unquote

import pyarrow as pa
from pyarrow import fs

from pipelines.errors import UserError

logger = logging.getLogger(__name__)
_OBJECT_STORES = ("s3", "gcs", "abfs")
_SAFE_IN_PATHS = "/%:=+,;@!$&'()*~-._"
"""What a path keeps as it is in a URI; %41 and the like stay, too, and are decoded by Arrow."""
_USER = re.compile(r"[^/]*@|[^/@]*:.*?@(?=[^/@]*(?:[/?]|$))")
"""What stands before the host, up to an @: behind a colon there may be a secret with slashes."""
_SECRET_NAMES = re.compile(r"key|secret|token|password|credential|sig", re.IGNORECASE)
"""What is in the names of a query's fields that hold a secret."""
_SHORTEST_SECRET = 4
"""To replace shorter ones in messages would spoil words and save nothing."""
_COPIED_BYTES = 8 << 20
"""The pieces in which a file goes to object storage."""
_S3_ATTEMPTS = 6
"""How often a request is made before it fails, over about ten seconds."""
_secrets: set[str] = set()
"""The credentials in all locations that this process knows, as they are written and decoded."""


@dataclass(frozen=True, repr=False)
class Location:
    """A path, or a URI whose credentials its text, its repr and messages of errors do not show."""

    uri: str
    """With the credentials: for the libraries that open it, never for people."""

    def __post_init__(self) -> None:
        _secrets.update(_secrets_in(self.uri))

    def __reduce__(self) -> tuple[type[Location], tuple[str]]:
        return type(self), (self.uri,)  # the process that unpickles it learns its credentials

    def __str__(self) -> str:
        return redact_credentials(self.uri)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self)!r})"

    @classmethod
    def of_user(cls, text: str) -> Location:
        """Make the location that a user names; a path becomes absolute.

        Warns of credentials in a URI. Raises UserError for a text that names nothing.
        """
        if not text.strip():
            raise UserError("a location is empty: give a path or a URI")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise UserError(f"{text!a} is not UTF-8, which no library opens; rename it") from error
        if "://" not in text:
            path = Path(text).expanduser().absolute()
            return cls(str(path))
        location = cls(text)
        if _secrets_in(text):
            _advise_against_credentials(str(location))
        return location

    @property
    def is_local(self) -> bool:
        """Whether it is on this machine or mounted here."""
        return "://" not in self.uri

    @property
    def filesystem_and_path(self) -> tuple[fs.FileSystem, str]:
        """Its Arrow file system, and its path there; UserError for a URI that means nothing."""
        return _resolve(self.uri)


@dataclass(frozen=True, repr=False)
class Folder(Location):
    """A folder, by its absolute path or a URI of object storage (s3://, gs://, abfs://)."""

    @classmethod
    def at(cls, location: str) -> Folder:
        """Make the folder that a user names; UserError if no file can be written there whole."""
        place = Location.of_user(location)
        if place.is_local:
            return cls(place.uri)
        filesystem, path = place.filesystem_and_path
        if filesystem.type_name == "local":
            return cls(path)
        if filesystem.type_name not in _OBJECT_STORES:
            raise UserError(f"'{place}' must be a folder, or begin with s3://, gs:// or abfs://")
        return cls(location)

    def files(self, below: str = "") -> dict[str, fs.FileInfo]:
        """List the files of the folder, or of the one `below` it, by name; none if missing."""
        return {info.base_name: info for info in self._infos(below)}

    def _infos(self, below: str) -> list[fs.FileInfo]:
        filesystem, path = self.filesystem_and_path
        folder = f"{path}/{below}".rstrip("/")
        infos: list[fs.FileInfo] = filesystem.get_file_info(
            fs.FileSelector(folder, allow_not_found=True)
        )
        return infos

    def names(self, below: str = "") -> Iterator[str]:
        """Yield the names of what is in the folder, or in the one `below` it, in any order.

        Millions of names need not be in memory at once: a folder on disk is read entry by entry,
        one of S3 page by page where the extra s3 is installed. Arrow holds a whole listing.
        """
        if self.is_local:
            with suppress(FileNotFoundError), os.scandir(Path(self.uri, below)) as entries:
                for entry in entries:
                    yield entry.name
            return
        filesystem, path = self.filesystem_and_path
        if filesystem.type_name == "s3" and has_s3_client():
            yield from _names_in_s3(filesystem, f"{path}/{below}".rstrip("/"))
            return
        for info in self._infos(below):
            yield info.base_name

    def read(self, name: str) -> bytes:
        """Read a file; FileNotFoundError if it is missing."""
        filesystem, path = self.filesystem_and_path
        with filesystem.open_input_file(f"{path}/{name}") as stream:
            content: bytes = stream.read()
        return content

    def write_atomic(self, name: str, data: bytes | pa.Buffer) -> None:
        """Write a file: others see its old or its new content, whenever this process ends.

        In object storage that is what one put does. On disk it takes a temporary name, and a sync
        of file and folder.
        """
        if self.is_local:
            with self._replacing(name) as file:
                file.write(data)
            return
        stream = self._object(name)
        stream.write(data)
        stream.close()  # no `with`: left by an error, it would finish the put

    @contextmanager
    def writing(self, name: str) -> Iterator[IO[bytes]]:
        """Write a file piece by piece, as whole as `write_atomic` does.

        Others see it once the block has ended without an error. What goes to object storage waits
        on this machine's disk until then.
        """
        if self.is_local:
            with self._replacing(name) as file:
                yield file
            return
        with tempfile.TemporaryFile() as file:
            yield file
            file.seek(0)
            stream = self._object(name)
            shutil.copyfileobj(file, stream, _COPIED_BYTES)
            stream.close()

    def _object(self, name: str) -> pa.NativeFile:
        """Open a file of object storage for writing; it is there once the stream is closed."""
        filesystem, path = self.filesystem_and_path
        return filesystem.open_output_stream(f"{path}/{name}")

    @contextmanager
    def _replacing(self, name: str) -> Iterator[IO[bytes]]:
        """Write a file on disk under a temporary name, and rename it when the block has ended."""
        final = Path(self.uri, name)
        final.parent.mkdir(parents=True, exist_ok=True)
        temporary = final.with_name(temporary_name(final.name))
        try:
            with open(temporary, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, final)
        except Exception:
            temporary.unlink(missing_ok=True)  # a full disk needs its room
            raise
        folder = os.open(final.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    @contextmanager
    def on_disk(self, name: str) -> Iterator[Path | None]:
        """Lend a file's path on this machine, None if it is missing.

        One of object storage is copied for the block, so that it can be read here and there.
        """
        if self.is_local:
            path = Path(self.uri, name)
            yield path if path.exists() else None
            return
        filesystem, path_there = self.filesystem_and_path
        with tempfile.NamedTemporaryFile() as copy:
            try:
                with filesystem.open_input_file(f"{path_there}/{name}") as stream:
                    shutil.copyfileobj(stream, copy, _COPIED_BYTES)
            except FileNotFoundError:
                copied = None
            else:
                copy.flush()
                copied = Path(copy.name)
            yield copied

    def remove_folder(self, name: str) -> None:
        """Remove a folder with all that is in it, if it exists."""
        filesystem, path = self.filesystem_and_path
        with suppress(FileNotFoundError):
            filesystem.delete_dir(f"{path}/{name}")

    def remove(self, name: str) -> None:
        """Remove a file if it exists."""
        filesystem, path = self.filesystem_and_path
        with suppress(FileNotFoundError):
            filesystem.delete_file(f"{path}/{name}")


@lru_cache(maxsize=64)  # once for each location
def _advise_against_credentials(location: str) -> None:
    logger.warning(
        f"{location}: credentials in a URI are seen by whoever sees the command line or Ray's "
        "dashboard; give them by the environment (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY), "
        "a profile or a role"
    )


def temporary_name(name: str) -> str:
    """Return the name that a file has until it is whole; readers skip it for its dot."""
    return f".{name}.{os.getpid()}"


def is_temporary(name: str) -> bool:
    """Tell whether `temporary_name` has made a name."""
    return re.fullmatch(r"\..+\.\d+", name) is not None


class _UriParts(NamedTuple):
    scheme: str
    user: str
    """What stands before the last @: an access key with its secret, or a name with a password."""
    host: str
    path: str
    query: str


def _split(uri: str) -> _UriParts:
    """Split a URI as people write it: secrets may hold slashes, paths wildcards, blanks, # or %.

    urllib's urlsplit takes a secret with a slash for a host, and raises for a bracket.
    """
    scheme, _, rest = uri.partition("://")
    user = ""
    before_host = _USER.match(rest)
    if before_host is not None:
        user = before_host[0].removesuffix("@")
        rest = rest[before_host.end() :]
    query = ""
    question_mark = re.search(r"\?(?=[A-Za-z_]\w*=)", rest)  # any other is a wildcard
    if question_mark is not None:
        query = rest[question_mark.end() :]
        rest = rest[: question_mark.start()]
    host, slash, path = rest.partition("/")
    return _UriParts(scheme, user, host, slash + path, query)


def _secrets_in(uri: str) -> set[str]:
    """Return the credentials in a URI, as they are written and as they are decoded."""
    if "://" not in uri:
        return set()
    parts = _split(uri)
    secrets: set[str] = set()
    if ":" in parts.user:  # without, it is not secret: a container of Azure, or "anonymous"
        name, _, password = parts.user.partition(":")
        secrets = {parts.user, name, password}
    for field in parts.query.split("&"):
        name, _, value = field.partition("=")
        if _SECRET_NAMES.search(name):
            secrets.add(value)
    forms: set[str] = set()
    for secret in secrets:
        forms.update(form for form in _forms(secret) if len(form) >= _SHORTEST_SECRET)
    return forms


def _forms(secret: str) -> list[str]:
    """Return a credential as it is written, decoded, and quoted in the ways of URIs."""
    plain = unquote(secret)
    return [
        secret,
        plain,
        quote(plain),
        quote(plain, safe=""),
        quote(secret),
        quote(secret, safe=""),
        _quoted(secret),
    ]


def redact_credentials(location: str) -> str:
    """Return `location` without the credentials that a URI may hold, for messages and records."""
    if "://" not in location:
        return location
    parts = _split(location)
    return f"{parts.scheme}://{parts.host}{parts.path}"


def remember_secrets(*secrets: str) -> None:
    """Let `redact` replace credentials that are in no location."""
    for secret in secrets:
        _secrets.update(form for form in _forms(secret) if len(form) >= _SHORTEST_SECRET)


def redact(text: str) -> str:
    """Return a text, such as a library's message, without the credentials of known locations."""
    for secret in sorted(_secrets, key=len, reverse=True):
        text = text.replace(secret, "***")
    return text


def one_line(error: Exception) -> str:
    """Give an error in one line, with its type unless reading and writing usually raise it."""
    text = redact(next(iter(str(error).splitlines()), ""))
    if text and isinstance(error, pa.ArrowException | OSError | EOFError | ValueError):
        return text
    return f"{type(error).__name__}: {text}"


def _quoted(text: str) -> str:
    """Quote for a URI what Arrow would refuse in a name or secret; %XX stays as it is."""
    return _quote_loose_percents(quote(text, safe="%:+=,;!$&'()*~-._"))


def _quote_loose_percents(text: str) -> str:
    return re.sub(r"%(?![0-9A-Fa-f]{2})", "%25", text)


@lru_cache(maxsize=16)
def _resolve(uri: str) -> tuple[fs.FileSystem, str]:
    """Return the Arrow file system of a path or URI, and the path there without a last slash."""
    filesystem, path = open_location(uri)
    return filesystem, path.rstrip("/") or path[:1]


def open_location(uri: str) -> tuple[fs.FileSystem, str]:
    """Return the Arrow file system of a path or URI, and the path there.

    hf://datasets/… and the like are read through huggingface_hub. Raises UserError for a URI that
    means nothing.
    """
    if "://" not in uri:
        return fs.LocalFileSystem(), uri
    if uri.startswith("hf://"):
        from huggingface_hub import HfFileSystem

        hub = fs.PyFileSystem(fs.FSSpecHandler(HfFileSystem()))
        return hub, uri.removeprefix("hf://").rstrip("/")
    parts = _split(uri)
    useless = f"'{redact_credentials(uri)}' is not a location that can be used"
    if not parts.host and parts.scheme != "file":
        raise UserError(f"{useless}: it names no bucket")
    user = f"{_quoted(parts.user)}@" if parts.user else ""
    path = _quote_loose_percents(quote(parts.path, safe=_SAFE_IN_PATHS))
    query = f"?{parts.query}" if parts.query else ""
    try:
        filesystem, path = fs.FileSystem.from_uri(
            f"{parts.scheme}://{user}{parts.host}{path}{query}"
        )
        return _with_few_requests(filesystem), path
    except (pa.ArrowException, OSError, ValueError) as error:
        reason = redact(str(error))
    # Raised inside the block, the error would have Arrow's as its context, which names the URI.
    raise UserError(f"{useless}: {reason}")


def _with_few_requests(filesystem: fs.FileSystem) -> fs.FileSystem:
    """Return a file system of S3 with settings that no URI has; others as they are.

    A file below 5 MB is one put in place of an upload in parts, which is three requests. Pauses
    between attempts grow, as a store that is overloaded wants it: those of a URI's are 0.2 s long.
    """
    if filesystem.type_name != "s3":
        return filesystem
    options = _s3_options(filesystem)
    if "allow_delayed_open" not in options:  # pyarrow 19
        return filesystem
    options["allow_delayed_open"] = True
    options["retry_strategy"] = fs.AwsStandardS3RetryStrategy(max_attempts=_S3_ATTEMPTS)
    return fs.S3FileSystem(**options)


def _s3_options(filesystem: fs.FileSystem) -> dict[str, Any]:
    """Return the options of an S3 file system, which its pickle alone tells."""
    options: dict[str, Any] = dict(filesystem.__reduce__()[1][0])
    return options


def has_empty_part(filesystem: fs.FileSystem, path: str) -> bool:
    """Tell whether a path is an S3 key with an empty part (//), which Arrow lists, not opens."""
    return "//" in path and filesystem.type_name == "s3"


@cache
def has_s3_client() -> bool:
    """Tell whether the extra s3 is installed, for such keys and for listings page by page."""
    return all(find_spec(name) is not None for name in ("boto3", "smart_open"))


def open_input(filesystem: fs.FileSystem, path: str) -> pa.NativeFile:
    """Open a file for random access; an S3 key with an empty part takes the extra s3."""
    if not has_empty_part(filesystem, path):
        return filesystem.open_input_file(path)
    import smart_open.s3

    bucket, _, key = path.partition("/")
    client = _s3_client(filesystem)
    stream = smart_open.s3.open(bucket, key, "rb", client=client)
    return pa.PythonFile(stream, "r")


def file_info(filesystem: fs.FileSystem, path: str) -> fs.FileInfo:
    """Return what a path is."""
    if not has_empty_part(filesystem, path):
        return filesystem.get_file_info(path)
    from botocore.exceptions import ClientError

    bucket, _, key = path.partition("/")
    try:
        head = _s3_client(filesystem).head_object(Bucket=bucket, Key=key)
    except ClientError as error:
        if _is_not_found(error):
            return fs.FileInfo(path, fs.FileType.NotFound)
        raise OSError(redact(str(error))) from error
    # Times in S3 are whole seconds, in a listing of Arrow's, too.
    changed_ns = int(parsedate_to_datetime(head["LastModified"]).timestamp()) * 10**9
    return fs.FileInfo(path, fs.FileType.File, size=head["ContentLength"], mtime_ns=changed_ns)


def _names_in_s3(filesystem: fs.FileSystem, folder: str) -> Iterator[str]:
    """Yield the names of what is in a folder of S3, of which a page is in memory at a time."""
    from botocore.exceptions import BotoCoreError, ClientError

    bucket, _, key = folder.partition("/")
    prefix = f"{key}/" if key else ""
    pages = _s3_client(filesystem).get_paginator("list_objects_v2")
    try:
        for page in pages.paginate(Bucket=bucket, Prefix=prefix, Delimiter="/"):
            for entry in page.get("CommonPrefixes", ()):
                yield entry["Prefix"].removeprefix(prefix).rstrip("/")
            for entry in page.get("Contents", ()):
                if entry["Key"] != prefix:  # an empty key says that there is a folder
                    yield entry["Key"].removeprefix(prefix)
    except (BotoCoreError, ClientError) as error:
        if isinstance(error, ClientError) and _is_not_found(error):
            return
        raise OSError(redact(str(error))) from error


def _is_not_found(error: Any) -> bool:  # boto3 has no types
    """Tell whether a ClientError says that there is no such key or bucket."""
    return bool(error.response["ResponseMetadata"]["HTTPStatusCode"] == 404)


def _s3_client(filesystem: fs.FileSystem) -> Any:  # boto3 has no types
    """Return a client of boto3 that signs and connects as an Arrow file system does.

    Times in its answers are the texts that were sent: to parse those of a listing takes three
    times as long as everything else of it.
    """
    options = _s3_options(filesystem)
    endpoint = options["endpoint_override"]
    return _s3_client_of(
        region=options["region"],
        endpoint=f"{options['scheme']}://{endpoint}" if endpoint else "",
        access_key=options["access_key"],
        secret_key=options["secret_key"],
        session_token=options["session_token"],
        anonymous=options["anonymous"],
    )


def store_options(location: Location) -> tuple[str, dict[str, str]]:
    """Return a path or URI without credentials, and the options with which the libraries of tables
    connect as its Arrow file system does.

    What no option names, they take from the environment, as Arrow does. Raises UserError for a
    storage other than a disk and S3.
    """
    filesystem, path = location.filesystem_and_path
    if filesystem.type_name == "local":
        return path, {}
    if filesystem.type_name != "s3":
        raise UserError("tables are read on disk and from s3://; copy it there")
    options = _s3_options(filesystem)
    endpoint = options["endpoint_override"]
    named = {
        "aws_access_key_id": options["access_key"],
        "aws_secret_access_key": options["secret_key"],
        "aws_session_token": options["session_token"],
        "aws_region": options["region"],
        "aws_endpoint": f"{options['scheme']}://{endpoint}" if endpoint else "",
        "aws_allow_http": "true" if options["scheme"] == "http" else "",
        "aws_skip_signature": "true" if options["anonymous"] else "",
    }
    return f"s3://{path}", {name: value for name, value in named.items() if value}


@lru_cache(maxsize=16)  # to make one takes long, and several threads may use one
def _s3_client_of(
    region: str,
    endpoint: str,
    access_key: str,
    secret_key: str,
    session_token: str,
    anonymous: bool,
) -> Any:
    import boto3
    from botocore import UNSIGNED
    from botocore.config import Config
    from botocore.session import get_session

    session = get_session()
    parsers = session.get_component("response_parser_factory")
    parsers.set_parser_defaults(timestamp_parser=str)
    return boto3.Session(botocore_session=session).client(
        "s3",
        region_name=region or None,
        endpoint_url=endpoint or None,
        aws_access_key_id=access_key or None,
        aws_secret_access_key=secret_key or None,
        aws_session_token=session_token or None,
        config=Config(signature_version=UNSIGNED) if anonymous else None,
    )
