"""Debian archives: which ones, what a set of packages resolves to there, and fetching it, all through apt itself."""

import hashlib
import os
import re
import shutil
import threading
import urllib.parse
from collections.abc import Iterable
from pathlib import Path

import msgspec

from kmbuild.config import Config
from kmplan import document
from kmplan.errors import UserError
from kmplan.run import run

HELPER = Path("/usr/lib/apt/apt-helper")
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
BATCH = 40
_FETCHING = threading.Lock()

# Read last (APT_CONFIG, apt.conf(5)): the user's proxies stay, the host's package state and hooks do not.
APT_CONFIG = """\
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
#clear APT::Update::Pre-Invoke;
Dir::State "{root}/state";
Dir::State::status "{root}/status";
Dir::Cache "{root}/cache";
Dir::Etc::sourcelist "{root}/sources.list";
Dir::Etc::sourceparts "-";
Dir::Etc::preferences "-";
Dir::Etc::preferencesparts "-";
APT::Architecture "amd64";
APT::Architectures "amd64";
APT::Install-Recommends "false";
APT::Sandbox::User "root";
Acquire::Languages "none";
Acquire::Retries "3";
Acquire::ForceHash "SHA256";
"""


class Package(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One .deb of a lock: `filename` is its path below the archive (`main` or `security`), `size` in bytes."""

    name: str
    version: str
    archive: str
    filename: str
    size: int
    sha256: str


class Archives(msgspec.Struct, frozen=True):
    """Base addresses of the two archives of a Debian release."""

    main: str
    security: str

    def url(self, package: Package) -> str:
        """Address of a package."""
        base = self.main if package.archive == "main" else self.security
        return f"{base.rstrip('/')}/{package.filename}"


def find_archives(config: Config) -> Archives:
    """Take the archives from the configuration, else from the host's apt sources."""
    targets = host_targets() if config.debian.mirror is None else []
    main = config.debian.mirror or next((uri for uri, release in targets if not release.endswith("-security")), None)
    if main is None:
        raise UserError(
            "debian.mirror: not set, and this host's apt sources name no Debian archive", "set it in kubermesh.yaml"
        )
    security = config.debian.security_mirror or next(
        (uri for uri, release in targets if release.endswith("-security")), None
    )
    return Archives(main.rstrip("/"), (security or re.sub(r"[^/]+/?$", "debian-security", main)).rstrip("/"))


def host_targets() -> list[tuple[str, str]]:
    """List (address, release) of the host's Debian archives, third parties' left out."""
    lines = run(
        ["apt-get", "indextargets", "--format", "$(REPO_URI) $(RELEASE) $(COMPONENT)", "Created-By: Packages"]
    ).stdout.splitlines()
    rows = [line.split() for line in lines]
    return [
        (row[0], row[1])
        for row in rows
        if len(row) == 3 and row[2] == "main" and re.search(r"/debian(-security)?/?$", row[0])
    ]


class Apt:
    """apt with package lists of its own, in the build cache."""

    def __init__(self, cache: Path, suite: str, archives: Archives) -> None:
        self.root = cache / "apt" / suite
        self.archives = archives
        for folder in ("state/lists/partial", "cache/archives/partial"):
            (self.root / folder).mkdir(parents=True, exist_ok=True)
        (self.root / "status").touch()
        document.write(self.root / "apt.conf", APT_CONFIG.format(root=self.root))
        signed = f"[signed-by={KEYRING}] " if KEYRING.exists() else ""
        main, security = f"deb {signed}{archives.main}", f"deb {signed}{archives.security}"
        lines = [f"{main} {suite} main non-free-firmware", f"{main} {suite}-updates main non-free-firmware"]
        document.write(
            self.root / "sources.list", "\n".join([*lines, f"{security} {suite}-security main non-free-firmware", ""])
        )

    @property
    def _env(self) -> dict[str, str]:
        return {"APT_CONFIG": str(self.root / "apt.conf"), "LC_ALL": "C.UTF-8"}

    def update(self) -> None:
        """Fetch the package lists, signatures checked by apt."""
        run(["apt-get", "update", "-qq", "--error-on=any"], env=self._env)

    def resolve(self, names: Iterable[str]) -> list[Package]:
        """Find what installing `names` on top of the essential packages means: every .deb, sorted by name."""
        argv = [
            "apt-get",
            "install",
            "--print-uris",
            "-y",
            "-qq",
            "?and(?essential,?architecture(amd64))",
            "apt",
            *sorted(names),
        ]
        lines = run(argv, env=self._env).stdout.splitlines()
        return sorted((self._parse(line) for line in lines if line.startswith("'")), key=lambda package: package.name)

    def _parse(self, line: str) -> Package:
        """Parse a line of --print-uris: 'address' file-name size SHA256:hash."""
        quoted, file_name, size, checksum = line.split()
        url = quoted.strip("'")
        is_security = url.startswith(self.archives.security + "/")
        base = self.archives.security if is_security else self.archives.main
        name, version, _ = file_name.split("_")
        algorithm, _, value = checksum.partition(":")
        if algorithm != "SHA256":
            raise UserError(f"{url}: the archive gives no SHA-256 of it")
        kind = "security" if is_security else "main"
        return Package(name, urllib.parse.unquote(version), kind, url.removeprefix(base + "/"), int(size), value)


def deb_path(store: Path, package: Package) -> Path:
    """Place of a package in the cache."""
    return store / f"{package.sha256}.deb"


def fetch(store: Path, packages: Iterable[Package], archives: Archives, progress: object = None) -> None:
    """Fetch what is missing of a lock into the cache; apt checks each hash before a file gets its name."""
    store.mkdir(parents=True, exist_ok=True)
    # Stages that are made side by side need some of the same packages: each is fetched once.
    with _FETCHING:
        _fetch_missing(store, [package for package in packages if not _is_there(store, package)], archives, progress)


def _fetch_missing(store: Path, wanted: list[Package], archives: Archives, progress: object) -> None:
    for start in range(0, len(wanted), BATCH):
        batch = wanted[start : start + BATCH]
        if callable(progress):
            progress(f"fetching packages {start + 1} to {start + len(batch)} of {len(wanted)}")
        triples = [
            (archives.url(package), f"{deb_path(store, package)}.{os.getpid()}", f"SHA256:{package.sha256}")
            for package in batch
        ]
        try:
            run([HELPER, "download-file", *(word for triple in triples for word in triple)])
        except UserError as error:
            names = ", ".join(package.name for package in batch[:3])
            hint = "when a locked version has left the archive, run `kmbuild lock` for today's versions"
            raise UserError(f"packages {names}, … could not be fetched: {error}", hint) from error
        finally:
            for package, (_, temporary, _) in zip(batch, triples, strict=True):
                _settle(Path(temporary), deb_path(store, package), package)


def _is_there(store: Path, package: Package) -> bool:
    path = deb_path(store, package)
    return path.is_file() and path.stat().st_size == package.size


def _settle(temporary: Path, target: Path, package: Package) -> None:
    if temporary.exists() and temporary.stat().st_size == package.size:
        temporary.replace(target)
    temporary.unlink(missing_ok=True)
    Path(f"{temporary}.FAILED").unlink(missing_ok=True)


def make_repository(store: Path, packages: Iterable[Package], folder: Path, suite: str) -> None:
    """Lay a flat apt repository of exactly these packages: hard links into the cache and an index (deb(5) control fields).

    mmdebstrap looks for essential packages in the suite by name, so there is a Release file that gives it.
    """
    folder.mkdir()
    stanzas = []
    for package in packages:
        name = f"{package.name}_{package.sha256[:16]}.deb"
        source = deb_path(store, package)
        try:
            os.link(source, folder / name)
        except OSError:
            shutil.copyfile(source, folder / name)
        fields = run(["dpkg-deb", "--field", source]).stdout.rstrip("\n")
        stanzas.append(f"{fields}\nFilename: ./{name}\nSize: {package.size}\nSHA256: {package.sha256}\n")
    index = "\n".join(stanzas).encode()
    document.write(folder / "Packages", index)
    checksum = hashlib.sha256(index).hexdigest()
    document.write(
        folder / "Release", f"Suite: {suite}\nCodename: {suite}\nSHA256:\n {checksum} {len(index)} Packages\n"
    )
