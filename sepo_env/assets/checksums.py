"""Write the checksums of the shipped assets: ``python -m sepo_env.assets.checksums``, after an asset has changed."""

import json
from pathlib import Path

from sepo_env.assets import FOLDER, MANIFEST, assets, sha256_of
from sepo_env.files import write_atomically


def write_checksums(folder: Path = FOLDER) -> Path:
    """Write the manifest of a folder of assets, and return its path.

    Raises:
        FolderError: it cannot be written.
    """
    found = {path.name: sha256_of(path) for path in assets(folder)}
    write_atomically(folder / MANIFEST, (json.dumps(found, indent=1) + "\n").encode())
    return folder / MANIFEST


def record(path: Path) -> None:
    """Bring the manifest up to date after an asset has been made, if it was made in a folder that has one."""
    if (path.parent / MANIFEST).exists():
        write_checksums(path.parent)


if __name__ == "__main__":
    print(f"wrote {write_checksums()}")
