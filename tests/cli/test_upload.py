"""Which files go along with a job: those that git would add, and no keys."""

from __future__ import annotations

import json
import os
import subprocess
import zipfile
from pathlib import Path

import pytest

from raylit.cli import upload
from raylit.errors import ConfigError


def make(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"# {name}\n")


@pytest.fixture(params=["a folder", "a repository", "part of a repository"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A folder with a .gitignore, in the three places that it may have."""
    made = tmp_path / "part" if request.param.startswith("part") else tmp_path
    made.mkdir(exist_ok=True)
    if "repository" in request.param:
        subprocess.run(["git", "init", "--quiet"], cwd=tmp_path, check=True)
    return made


def test_what_git_ignores_stays(folder: Path) -> None:
    make(folder, "net.py", "package/a.py", "package/data/x", "data/x", "a.bin", "package/b.bin")
    make(folder, ".venv/lib/x.py", "mlruns/1/x", "package/__pycache__/a.pyc", "raylit_runs/x/y")
    (folder / ".gitignore").write_text("/data/\n*.bin\n!package/b.bin\n")
    (folder / "package/.gitignore").write_text("data/\n")
    assert upload.files_of(folder) == [
        ".gitignore",
        "net.py",
        "package/.gitignore",
        "package/a.py",
        "package/b.bin",
    ]


def test_a_gitignore_above_counts(tmp_path: Path) -> None:
    subprocess.run(["git", "init", "--quiet"], cwd=tmp_path, check=True)
    make(tmp_path, "part/net.py", "part/a.bin")
    (tmp_path / ".gitignore").write_text("*.bin\n")
    assert upload.files_of(tmp_path / "part") == ["net.py"]


def test_a_rayignore_leaves_out_what_git_keeps(folder: Path) -> None:
    make(folder, "net.py", "key.py", "package/key.py", "notes/x")
    if (folder / ".git").exists():
        subprocess.run(["git", "add", "--all"], cwd=folder, check=True)
    (folder / ".rayignore").write_text("/key.py\nnotes/\n")
    assert upload.files_of(folder) == [".rayignore", "net.py", "package/key.py"]


def test_what_is_gone_and_links_to_folders_are_left_out(tmp_path: Path) -> None:
    make(tmp_path, "net.py", "gone.py", "elsewhere/x")
    subprocess.run("git init -q && git add net.py gone.py", shell=True, cwd=tmp_path, check=True)
    (tmp_path / "gone.py").unlink()
    (tmp_path / ".gitignore").write_text("elsewhere\n")
    os.symlink("elsewhere", tmp_path / "link")
    os.symlink("nowhere", tmp_path / "broken")
    os.symlink("net.py", tmp_path / "other.py")
    assert upload.files_of(tmp_path) == [".gitignore", "net.py", "other.py"]


def test_a_repository_within_goes_along(tmp_path: Path) -> None:
    make(tmp_path, "net.py", "module/a.py", "module/a.bin")
    (tmp_path / "module/.gitignore").write_text("*.bin\n")
    commit = "git init -q && git add . && git -c user.name=a -c user.email=a@b commit -qm a"
    subprocess.run(commit, shell=True, cwd=tmp_path / "module", check=True)
    subprocess.run(["git", "init", "--quiet"], cwd=tmp_path, check=True)
    assert upload.files_of(tmp_path) == ["module/.gitignore", "module/a.py", "net.py"]


def test_without_git_it_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match=r"\.gitignore[\s\S]*Install git"):
        upload.files_of(tmp_path)


KEY = "-----BEGIN OPENSSH PRIVATE KEY-----\nabc\n"
SECRETS = {
    ".env": "",
    "sub/.env.local": "",
    "prod.env": "",
    "id_ed25519": "",
    "server.key": "",
    "cert.p12": "",
    ".netrc": "",
    ".pgpass": "",
    "auth_token": "",
    "server.pem": KEY,
    "notes.txt": f"the key:\n{KEY}",
    # made here, so that this file, which goes along with the repository, holds none
    "account.json": json.dumps({"private_key": KEY}),
    "aws": "[default]\n" + "aws_secret_access_key" + " = abc\n",
}
HARMLESS = {
    ".env.example": "A=\n",
    "environment.py": "",
    "keys.py": 'KEY = "-----BEGIN RSA PRIVATE KEY-----"\n',
    "ca.pem": "-----BEGIN CERTIFICATE-----\nabc\n",
    "id_rsa.pub": "ssh-rsa AAAA\n",
    "monkey.py": "aws_secret_access_key = None or 'x'\n".replace("aws_", "my_"),
}


@pytest.mark.parametrize("name", SECRETS)
def test_keys_are_refused(tmp_path: Path, name: str) -> None:
    make(tmp_path, "net.py", name)
    (tmp_path / name).write_text(SECRETS[name])
    with pytest.raises(
        ConfigError, match=r"Nothing was uploaded[\s\S]*\.gitignore, or in \.rayignore"
    ):
        upload.refuse_secrets(tmp_path, ["net.py", name])
    with pytest.raises(ConfigError) as refused:
        upload.refuse_secrets(tmp_path, ["net.py", name])
    assert f"\n  {name}: " in str(refused.value) and "net.py" not in str(refused.value)


def test_what_only_looks_like_keys_is_not_refused(tmp_path: Path) -> None:
    for name, text in HARMLESS.items():
        (tmp_path / name).write_text(text)
    upload.refuse_secrets(tmp_path, list(HARMLESS))


def test_this_repository_can_be_sent() -> None:
    """README's command sends it from a clone."""
    root = Path(__file__).parents[2]
    upload.refuse_secrets(root, upload.files_of(root))


def test_the_package_is_the_same_for_the_same_files(tmp_path: Path) -> None:
    make(tmp_path, "a.py", "b/c.sh")
    (tmp_path / "b/c.sh").chmod(0o755)
    packages = [tmp_path / "1.zip", tmp_path / "2.zip"]
    for package in packages:
        size = upload.pack(tmp_path, ["a.py", "b/c.sh"], package, 10_000, "Ray")
        assert size == package.stat().st_size
        os.utime(tmp_path / "a.py", (1, 1))
    assert packages[0].read_bytes() == packages[1].read_bytes(), "so Ray takes it once"
    with zipfile.ZipFile(packages[0]) as archive:
        assert {one.filename: one.external_attr >> 16 & 0o111 for one in archive.infolist()} == {
            "a.py": 0,
            "b/c.sh": 0o111,
        }


def test_too_much_is_refused_with_the_largest_files(tmp_path: Path) -> None:
    make(tmp_path, "a.py")
    (tmp_path / "weights.bin").write_bytes(os.urandom(200_000))
    with pytest.raises(ConfigError, match=r"weights\.bin: 0\.2 MB"):
        upload.pack(tmp_path, ["a.py", "weights.bin"], tmp_path / "x.zip", 100_000, "Ray")


def test_far_too_much_is_refused_unread(tmp_path: Path) -> None:
    with (tmp_path / "data.bin").open("wb") as file:
        file.truncate(1 << 40)  # a hole
    with pytest.raises(ConfigError, match=r"data\.bin"):
        upload.pack(tmp_path, ["data.bin"], tmp_path / "x.zip", 100_000, "Ray")
