"""Which files of a folder go along with a job, and which must not."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

from raylit.errors import ConfigError

# What runs and environments leave in a folder, where no .gitignore says so.
NEVER: tuple[str, ...] = (
    ".venv/",
    "venv/",
    "node_modules/",
    "__pycache__/",
    ".ipynb_checkpoints/",
    ".raylit/",
)
NEVER += ("mlruns/", "mlartifacts/", "mlflow.db*", "raylit_runs/", "lightning_logs/")
# Names of files that hold passwords and keys, whatever is in them.
SECRET_NAME = re.compile(
    r"(?x) \.envrc | \.env(\.(?!example|sample|template|dist)[\w.-]+)? | .*\.env | \.netrc"
    r" | \.pgpass| id_(rsa|dsa|ecdsa|ed25519) | .*\.(key|p12|pfx|jks|keystore|kdbx|ppk)"
    r" | auth_token| \.git-credentials | \.dockerconfigjson"
)
# What is in them, whatever their names: a private key, alone or in a JSON file of Google's, and a
# file of Amazon's.
SECRET_TEXT = re.compile(
    rb"(?m)^-----BEGIN [A-Z ]*PRIVATE KEY-----\s*$"
    rb"|\"private_key\"\s*:\s*\"-----BEGIN"
    rb"|^\s*aws_secret_access_key\s*=\s*\S"
)
MAX_LOOKED_INTO = 1 << 20  # bytes; keys are small
MOST_NAMED = 10
MOST_PACKED = 20  # times smaller than it was: no code is packed better
DATE = (1980, 1, 1, 0, 0, 0)  # the first a zip can have


def files_of(folder: Path) -> list[str]:
    """Return the files of a folder that git knows or would add, but for those in a .rayignore.

    Args:
        folder: part of a repository or not; a .gitignore counts either way.

    Returns:
        Paths below the folder, sorted.

    Raises:
        ConfigError: there is no `git`, which knows best what a .gitignore means.
    """
    with tempfile.TemporaryDirectory() as empty:
        git = ["git"]
        if _run([*git, "rev-parse", "--git-dir"], folder).returncode:
            _run(["git", "init", "--quiet", "--bare", empty], folder)
            git += [f"--git-dir={empty}", f"--work-tree={folder}"]
        listing = [*git, "ls-files", "-z"]
        exclude = [f"--exclude={name}" for name in NEVER]
        found = _names(_run([*listing, "-co", "--exclude-standard", *exclude], folder))
        for which in ("-ci", "-oi"):  # .rayignore leaves out what git tracks, too
            ignored = [*listing, which, "--exclude-per-directory=.rayignore"]
            found -= _names(_run(ignored, folder))
    files: list[str] = []
    for name in sorted(found):
        path = folder / name
        if path.is_dir() and not path.is_symlink():  # a repository of its own in here
            files += [os.path.join(name.rstrip("/"), inner) for inner in files_of(path)]
        elif path.is_file():  # gone, a broken link, or a link to a folder elsewhere: left out
            files.append(name)
    return files


def refuse_secrets(folder: Path, files: Sequence[str]) -> None:
    """Refuse files with keys and passwords: the cluster keeps all uploaded files.

    Raises:
        ConfigError: there are some.
    """
    found = []
    for name in files:
        if SECRET_NAME.fullmatch(os.path.basename(name)):
            found.append(f"  {name}: its name is that of a file of secrets")
        elif (folder / name).stat().st_size <= MAX_LOOKED_INTO and SECRET_TEXT.search(
            (folder / name).read_bytes()
        ):
            found.append(f"  {name}: there is a secret key in it")
    if found:
        more = [f"  and {len(found) - MOST_NAMED} more"] if len(found) > MOST_NAMED else []
        raise ConfigError(
            "Nothing was uploaded, since these files look like keys and passwords:\n"
            + "\n".join([*found[:MOST_NAMED], *more])
            + "\nLeave them out: name them in .gitignore, or in .rayignore if git is to keep them."
            " What the job needs of them, the cluster has to have: as environment variables of"
            " `ray start`, or by its own role."
        )


def pack(folder: Path, files: Sequence[str], package: Path, max_bytes: int, where: str) -> int:
    """Write files into a zip, which is the same for the same files.

    Args:
        folder: what their names are below.
        files: their names.
        package: the zip.
        max_bytes: how large it may be.
        where: what takes no more, for the message.

    Returns:
        Its size, in bytes.

    Raises:
        ConfigError: it is too large.
    """
    sizes = {name: (folder / name).stat().st_size for name in files}
    size = sum(sizes.values())
    if size <= MOST_PACKED * max_bytes:  # else there is no use in trying
        with zipfile.ZipFile(package, "w", zipfile.ZIP_DEFLATED) as archive:
            for name in files:
                entry = zipfile.ZipInfo(Path(name).as_posix(), DATE)
                entry.external_attr = ((folder / name).stat().st_mode & 0o777) << 16
                entry.compress_type = zipfile.ZIP_DEFLATED
                archive.writestr(entry, (folder / name).read_bytes())
        size = package.stat().st_size
    if size <= max_bytes:
        return size
    largest = sorted(sizes, key=lambda name: -sizes[name])[:5]
    raise ConfigError(
        f"{len(files)} files of {folder} are {megabytes(size)}, and {where} takes"
        f" {megabytes(max_bytes)}. The largest are:\n"
        + "\n".join(f"  {name}: {megabytes(sizes[name])}" for name in largest)
        + "\nName what the job does not need in .gitignore or .rayignore. Data belongs where the"
        " nodes of the cluster find it: in a bucket, or on a file system that they share."
    )


def megabytes(size: int) -> str:
    """Return a number of bytes as users read it."""
    return f"{size / 1e6:.1f} MB" if size >= 100_000 else f"{size / 1e3:.1f} kB"


def _run(command: Sequence[str], folder: Path) -> subprocess.CompletedProcess[bytes]:
    try:
        return subprocess.run(command, cwd=folder, capture_output=True, check=False)
    except FileNotFoundError:
        raise ConfigError(
            "--on uploads the files that .gitignore does not name, and asks `git` which these are."
            " Install git."
        ) from None


def _names(done: subprocess.CompletedProcess[bytes]) -> set[str]:
    if done.returncode:
        raise ConfigError(
            "git cannot say which files of this folder are to be uploaded:"
            f" {done.stderr.decode(errors='replace').strip()}"
        )
    return {os.fsdecode(name) for name in done.stdout.split(b"\0") if name}
