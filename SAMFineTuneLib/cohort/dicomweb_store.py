"""A DICOMweb server (PACS, Orthanc, …): lists series, fetches them into a folder, and stores DICOM SEG.

dicomweb-client speaks QIDO-RS, WADO-RS and STOW-RS. User and password are taken from the environment or asked for, and
never written to a file. Certificates are verified. A series appears in the folder once it is complete, under a digest
of its UID; an incomplete one lies in a hidden folder, from which the next fetch continues.
"""

from __future__ import annotations

import hashlib
import ssl
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from SAMFineTuneLib.errors import UserError
from SAMFineTuneLib.files import atomic_write, remove_abandoned, require_writable

TOKEN, USER, PASSWORD = "SAMFINETUNE_DICOMWEB_TOKEN", "SAMFINETUNE_DICOMWEB_USER", "SAMFINETUNE_DICOMWEB_PASSWORD"
"""Variables that hold a token, or a user's name and password."""
PATIENT = "SAMFINETUNE_DICOMWEB_PATIENT"
"""A variable in which the panel passes the PatientID to search for, so that it is never written to a file."""
_SHORT = 12  # digits of a digest
_GIVE_CERTIFICATE = "give the certificate (.pem) of the authority that signed the server's"
_FIELDS = {"study": "0020000D", "series": "0020000E", "modality": "00080060", "description": "0008103E",
           "images": "00201209"}  # fmt: skip
_IMAGE = "00080018"  # SOPInstanceUID
_NOT_IMAGES = ("SEG", "SR", "PR", "KO", "RTSTRUCT", "RTPLAN", "RTDOSE", "REG", "DOC")


def is_private(url: str) -> bool:
    """Whether connections to an address are encrypted, or do not leave this computer."""
    parts = urlsplit(url)
    return parts.scheme == "https" or parts.hostname in ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class RemoteSeries:
    """A series on a server; nothing in it names a patient."""

    study: str
    """StudyInstanceUID."""
    series: str
    """SeriesInstanceUID."""
    modality: str
    description: str
    images: int
    """0 where the server does not say."""

    @property
    def folder(self) -> str:
        """Name of its folder: the beginning of a digest of its UID."""
        return hashlib.sha256(self.series.encode()).hexdigest()[:_SHORT]


class DicomwebStore:
    """A connection to a server.

    Args:
        url: the address of its DICOMweb service, such as https://pacs.hospital/dicom-web.
        token: sent as a bearer token.
        user: name and password, when there is no token.
        certificate: file (.pem) of the authority that signed the server's certificate, if this computer does not know
            it.

    Raises:
        UserError: without the package, and for an address that is invalid or contains a password.
    """

    def __init__(
        self, url: str, token: str = "", user: tuple[str, str] | None = None, certificate: str | Path | None = None
    ) -> None:
        from SAMFineTuneLib.models.optional_packages import require

        require("DICOMweb", "dicomweb_client", extra="dicomweb")
        import requests
        from dicomweb_client import DICOMwebClient

        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UserError(f"“{url}” is not the address of a DICOMweb service, such as https://pacs.hospital/dicom-web.")
        if "@" in parts.netloc:
            raise UserError("Leave user and password out of the address; give them separately.")
        self._host = parts.netloc
        session = requests.Session()
        if certificate:
            trusted = str(Path(certificate).expanduser())
            try:
                ssl.create_default_context(cafile=trusted)
            except OSError as error:
                reason = "holds no certificate" if isinstance(error, ssl.SSLError) else "cannot be read"
                raise UserError(f"“{certificate}” {reason}; {_GIVE_CERTIFICATE}.") from error
            settings = session.merge_environment_settings  # in which REQUESTS_CA_BUNDLE overrides a session's own
            session.merge_environment_settings = lambda *given: {**settings(*given), "verify": trusted}
        session.auth = _bearer(token) if token else user
        self._client = DICOMwebClient(url.rstrip("/"), session=session)
        # The default would go on for half a minute.
        self._client.set_http_retry_params(max_attempts=3, wait_exponential_multiplier=250)

    def list_series(self, filters: Mapping[str, str] | None = None) -> list[RemoteSeries]:
        """The image series on the server that match DICOM attributes, such as {"Modality": "CT"}; UserError when it
        cannot be reached.
        """
        found = self._found(
            _FIELDS["series"], self._client.search_for_series,
            search_filters=dict(filters or {}), fields=["NumberOfSeriesRelatedInstances", "SeriesDescription"],
        )  # fmt: skip
        rows = [{name: _value(one, tag) for name, tag in _FIELDS.items()} for one in found]
        listed = [RemoteSeries(**{**row, "images": int(row["images"] or 0)}) for row in rows]
        images = [one for one in listed if one.modality not in _NOT_IMAGES]
        return sorted(images, key=lambda one: (one.study, one.series))

    def fetch(
        self, series: RemoteSeries, folder: str | Path, progress: Callable[[int, int], None] = lambda done, total: None
    ) -> Path:
        """Fetch a series into a folder of its own; an existing one is not fetched again.

        Args:
            series: the series.
            folder: where its folder goes.
            progress: called with the number of images fetched, and of all.

        Returns:
            The series' folder.

        Raises:
            UserError: when the server refuses, or has no images of it; a later fetch continues where this one stopped.
            DiskError: when the disk refuses.
        """
        target = Path(folder) / series.folder
        if target.exists():
            return target
        require_writable(folder)
        from SAMFineTuneLib.images.pydicom_versions import save

        partial = target.with_name(f".{series.folder}.fetching")
        listed = self._found(_IMAGE, self._client.search_for_instances, series.study, series.series)
        names = [_value(one, _IMAGE) for one in listed]
        if not names or len(names) < series.images:
            raise UserError(
                f"“{self._host}” lists {len(names)} of the {series.images} images of series {series.series}; ask its "
                "administrator."
            )
        for done, name in enumerate(names):
            progress(done, len(names))
            file = partial / f"{hashlib.sha256(name.encode()).hexdigest()[:_SHORT]}.dcm"
            if file.exists():
                continue
            with self._in_words():
                image = self._client.retrieve_instance(series.study, series.series, name)
            with atomic_write(file, durable=False) as temporary:
                save(image, temporary)
        progress(len(names), len(names))
        remove_abandoned(partial, after=0)  # what a killed fetch was writing
        with suppress(FileExistsError):  # another process was faster
            partial.rename(target)
        return target

    def fetch_all(
        self, found: Sequence[RemoteSeries], folder: str | Path, progress: Callable[[int, int], None]
    ) -> None:
        """Fetch several series, as `fetch` does; `progress` counts the images of all."""
        images, before = sum(one.images for one in found), 0
        for one in found:
            tell = lambda done, total, before=before: progress(before + done, max(images, before + total))  # noqa: E731
            self.fetch(one, folder, tell)
            before += one.images

    def store(
        self, files: Sequence[str | Path], progress: Callable[[int, int], None] = lambda done, total: None
    ) -> None:
        """Store DICOM files on the server; UserError when it refuses one.

        Args:
            files: the files.
            progress: called with the number stored, and of all; it may raise to stop.
        """
        import pydicom

        for done, file in enumerate(files):
            progress(done, len(files))
            with self._in_words():
                answer = self._client.store_instances([pydicom.dcmread(file)])
            if answer is not None and answer.get("FailedSOPSequence"):
                code = answer.FailedSOPSequence[0].get("FailureReason", 0)
                raise UserError(
                    f"“{self._host}” did not store {Path(file).name} (reason {code:#06x}); ask its administrator."
                )

    def _found(self, unique: str, search: Callable[..., Any], *where: str, **options: Any) -> list[Mapping[str, Any]]:
        """The results of a search, page by page until one brings nothing new: some servers have only one page."""
        found: dict[str, Mapping[str, Any]] = {}
        while True:
            with self._in_words():
                page = {_value(one, unique): one for one in search(*where, offset=len(found), **options)}
            if page.keys() <= found.keys():
                return list(found.values())
            found |= page

    @contextmanager
    def _in_words(self) -> Iterator[None]:
        """Raise what goes wrong between here and the server as a sentence."""
        import requests

        try:
            yield
        except requests.exceptions.SSLError as error:
            if "CERTIFICATE_VERIFY_FAILED" not in str(error):
                raise UserError(f"“{self._host}” does not offer https:// encryption; check the address.") from error
            wrong, advice = "cannot be verified", _GIVE_CERTIFICATE
            if "mismatch" in str(error):
                wrong, advice = "is not issued for this name", "use the name that it is issued for"
            raise UserError(f"The certificate of “{self._host}” {wrong}; {advice}.") from error
        except requests.exceptions.HTTPError as error:
            raise UserError(f"“{self._host}” {_refusal(error.response)}") from error
        except requests.exceptions.RequestException as error:
            raise UserError(
                f"“{self._host}” cannot be reached ({type(error).__name__}); check the address and the network, then "
                "try again."
            ) from error
        except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(
                f"“{self._host}” does not answer as a DICOMweb service; check that the address is right."
            ) from error


def _bearer(token: str) -> Callable[[Any], Any]:
    def sign(request: Any) -> Any:
        request.headers["Authorization"] = f"Bearer {token}"
        return request

    return sign


def _refusal(response: Any) -> str:
    code = getattr(response, "status_code", 0)
    if code in (401, 403):
        return f"refused the login ({code}); check the user and the password, or the token."
    if code == 404:
        return "does not have this (404); check the address and the UIDs."
    return f"refuses with {code}; try again later, or ask its administrator."


def _value(found: Mapping[str, Any], tag: str) -> str:
    """The first value of an attribute in DICOM JSON, as text."""
    values = found.get(tag, {}).get("Value") or [""]
    return str(values[0] if values[0] is not None else "")
