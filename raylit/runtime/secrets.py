"""Texts without passwords and tokens, which may be shown and stored.

Whatever raylit prints, warns, raises or writes into artifacts, tags and parameters goes through
`without_secrets`. Give secrets by the environment (MLFLOW_TRACKING_USERNAME and
MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN), where nothing has to be masked.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeGuard
from urllib.parse import unquote

MASK = "***"

# A URI in any text, up to a space. What follows `//` is parsed by `_without_login`.
_URI = re.compile(r"(?<![\w+.\-:/])((?:[\w+.\-]++:)?)(//[^\s\"<>`]*)")
# A password with a space in it, which database drivers take unquoted; a port is none.
_SPACED = re.compile(
    r"(?<![\w+.\-])([\w+.\-]++://[^\s/@:]*:)(?!\d+(?:[\s/,;:.)]|$))"
    r"[^\s@]{0,80}[ \t][^@\n\"'<>]{0,80}@(?=[\w\[])"
)
# Names in the query of a URI that mean a secret there, and may mean anything elsewhere.
_QUERY = re.compile(r"((?:^|[&;])(?:key|auth|code|pass)=)[^&;#]+", re.IGNORECASE)
# Tokens that are known by how they begin: of Hugging Face, GitHub, GitLab, OpenAI and Slack.
_TOKEN = re.compile(
    r"(?<![\w\-])(?:hf_[A-Za-z0-9]{30,}|gh[pousr]_[A-Za-z0-9]{36,}|github_pat_\w{50,}"
    r"|glpat-[\w\-]{20,}|sk-(?:\w{3,8}-)?[A-Za-z0-9_\-]{0,8}[A-Za-z0-9]{24,}"
    r"|xox[abeprs]-[\w\-]{10,})"
)
_PRIVATE_KEY = re.compile(
    r"(-----BEGIN [A-Z ]*PRIVATE KEY-----).*?(-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL
)
# Stores whose addresses have an @ that is no end of a password: abfs://container@account/path.
_WITH_AT = ("s3", "gs", "gcs", "abfs", "abfss", "adl", "wasb", "wasbs", "file", "sqlite", "hdfs")

_SURE = {"password", "passwd", "pwd", "passphrase", "passcode", "secret", "secrets", "apikey"}
_SURE |= {"credential", "credentials", "authorization", "sig", "signature", "accesskey"}
_NUMBERS = {"password", "passwd", "pwd", "passphrase", "passcode"}  # secret even as numbers
_KEYS_OF = {"api", "access", "private", "secret", "account", "signing", "encryption", "auth"}
# Tokens of a language rather than of a login.
_TOKENS_OF = {"pad", "eos", "bos", "mask", "unk", "cls", "sep", "special", "start", "end", "stop"}
_TOKENS_OF |= {"begin", "next", "per", "each", "max", "min", "num", "prompt", "image", "class"}
# A text without any of these, in small letters, has nothing to mask.
_SIGNS: tuple[str, ...] = (
    "//",
    "%",
    "pass",
    "pwd",
    "secret",
    "key",
    "credential",
    "authorization",
    "sig",
    "token",
)
_SIGNS += ("hf_", "ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_", "glpat-", "sk-", "xox")
# A name begins where none is before it: else a long word would be looked through from each of its
# letters (30,000 took minutes).
_BEGIN = r"(?<![\w.\-])"
_NAME = r"[\w.\-]++"
# `key=value`, as in a URI, in what a database driver takes, and in the environment.
_ASSIGNMENT = re.compile(rf"{_BEGIN}({_NAME})(=)([^\s&;,'\"]+|'[^']*'|\"[^\"]*\")")
# `--key value`, as in a command.
_FLAG = re.compile(rf"{_BEGIN}(--{_NAME}\s+)(?!--)(\S+)")
# `key: value`, as in YAML and JSON; a value on the same line.
_ENTRY = re.compile(
    rf"([\"']?){_BEGIN}({_NAME})(\1:[ \t]+)(\"[^\"\n]*\"|'[^'\n]*'|[^\s,{{}}\[\]][^\n,}}]*)"
)
# `key: |`, `key: >-` and `key:`, whose value is what is indented further in the next lines.
_OPENING = re.compile(rf"([ \t]*(?:- )?)([\"']?)({_NAME})(\2:)[ \t]*(?:[|>][-+0-9]*)?[ \t]*")
_PLAIN = re.compile(r"[\"']?(?:true|false|null|none|~|[-+.\d][\d.e+\-_]*|\*+)[\"']?", re.IGNORECASE)


def is_secret_name(name: str) -> bool:
    """Tell whether a name is that of a secret.

    Example:
        >>> is_secret_name("hf_token"), is_secret_name("num_tokens"), is_secret_name("pad_token")
        (True, False, False)
    """
    words = _words(name)
    if not words:
        return False
    before = words[-2] if len(words) > 1 else ""
    if words[-1] == "token":
        return before not in _TOKENS_OF
    if words[-1] == "key":
        return before in _KEYS_OF
    return bool(_SURE & set(words))


def is_secret_number(name: str, value: object) -> bool:
    """Tell whether a number, or its text, is a secret: `password: 123456`, but not `token: 5`.

    Example:
        >>> is_secret_number("db_password", 1234), is_secret_number("image_token", 1234)
        (True, False)
    """
    if isinstance(value, bool) or (_words(name) or [""])[-1] not in _NUMBERS:
        return False
    return bool(re.fullmatch(r"[-+]?\d[\d._]*", str(value)))


def _words(name: str) -> list[str]:
    spaced = re.sub(r"([a-z0-9])([A-Z])", r"\1_\2", name)
    return [word for word in re.split(r"[^a-z0-9]+", spaced.lower()) if word]


def without_secrets(text: str) -> str:
    """Return a text as it may be shown or stored.

    User names in URIs stay, passwords behind them do not; nor do the values of names such as
    `password` and `token`, in URIs, `key=value` and `key: value`.

    Args:
        text: a URI, a line, a whole config.

    Example:
        >>> without_secrets("https://me:p@ss/word@host:5000/mlflow?token=abc")
        'https://me:***@host:5000/mlflow?token=***'
    """
    small = text.lower()
    if not any(sign in small for sign in _SIGNS):
        return text
    text = _PRIVATE_KEY.sub(rf"\1 {MASK} \2", text)
    text = _TOKEN.sub(MASK, text)
    text = _SPACED.sub(rf"\1{MASK}@", text)
    text = _URI.sub(lambda found: f"{found[1]}{_without_login(found[1][:-1], found[2])}", text)
    text = _ASSIGNMENT.sub(_masked_assignment, text)
    text = _FLAG.sub(_masked_flag, text)
    text = _without_blocks(text)
    return _ENTRY.sub(_masked_entry, text)


def has_secret(text: str) -> bool:
    """Tell whether a text holds a secret that may not be shown."""
    return without_secrets(text) != text


def holds_secret(name: str, value: object) -> bool:
    """Tell whether a value, nested or not, has a text that is secret by itself or by its name.

    All that stands below the name of a secret is one: `credentials={"value": "abc"}`.

    Args:
        name: of the whole.
        value: texts, numbers, and containers of them: mappings, lists, tuples, sets, Namespaces,
            dataclasses.
    """
    left = [(name, value, is_secret_name(name))]
    seen: dict[int, object] = {}  # a dataclass may lead back to itself
    while left:
        name, one, is_secret = left.pop()
        if isinstance(one, (str, bytes)):
            if one and (is_secret or (isinstance(one, str) and has_secret(one))):
                return True
        elif isinstance(one, (int, float)):
            if is_secret_number(name, one):
                return True
        elif id(one) not in seen:
            seen[id(one)] = one
            for key, part in _parts(one):
                left.append((key or name, part, is_secret or is_secret_name(key)))
    return False


def _parts(value: object) -> Iterator[tuple[str, object]]:
    """Yield the parts of a container, each with its key or field, with "" if it has none."""
    if isinstance(value, argparse.Namespace):
        yield from vars(value).items()
    elif isinstance(value, Mapping):
        yield from ((str(key), part) for key, part in value.items())
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [field.name for field in dataclasses.fields(value)]
        yield from ((name, getattr(value, name)) for name in names if hasattr(value, name))
    elif isinstance(value, (list, tuple, set, frozenset)) or _is_list_config(value):
        yield from (("", part) for part in value)


def _is_list_config(value: object) -> TypeGuard[Sequence[object]]:
    """Tell whether this is OmegaConf's list, whose mapping is a Mapping."""
    return isinstance(value, Sequence) and type(value).__module__.startswith("omegaconf.")


def without_secret_values(value: Any) -> Any:
    """Return nested plain data with `***` in place of what `holds_secret` finds."""
    return _masked(value, "", False)


def _masked(value: Any, name: str, is_secret: bool) -> Any:
    if isinstance(value, (str, bytes)) and is_secret and value:
        return MASK
    if isinstance(value, str):
        return without_secrets(value)
    if isinstance(value, (int, float)):
        return MASK if is_secret_number(name, value) else value
    if isinstance(value, dict):
        return {
            key: _masked(one, str(key), is_secret or is_secret_name(str(key)))
            for key, one in value.items()
        }
    if type(value) in (list, tuple, set, frozenset):
        return type(value)(_masked(one, name, is_secret) for one in value)
    return value


def _cut_at_query(rest: str) -> tuple[str, str, str]:
    """Return the text before a query or fragment, its mark, and the text after it."""
    cut = re.search(r"[?#]", rest)
    if cut is None:
        return rest, "", ""
    body = rest[: cut.start()]
    query = rest[cut.end() :]
    is_of_password = ":" in body and "@" not in body and "=" not in query.split("@")[0]
    if "@" in query and is_of_password:  # the mark stands in one that was not quoted
        return rest, "", ""
    return body, cut[0], query


def _without_login(scheme: str, rest: str) -> str:
    """Return the part of a URI after its scheme, without the password.

    The last @ before the query ends the login: a password that was not quoted may hold an @ or a /,
    and urllib.parse would then take a part of it for the host.
    """
    body, mark, query = _cut_at_query(rest[2:])
    end = body.rfind("@")
    if scheme.lower().split("+")[0] in _WITH_AT:
        authority = body.partition("/")[0]
        end = authority.rfind("@") if ":" in authority.rpartition("@")[0] else -1
    if end >= 0:
        user, colon, password = body[:end].partition(":")
        # A token may be given as user, with an empty password or a fixed one.
        is_token = not colon or (user and password in ("", "x-oauth-basic"))
        body = f"{MASK if is_token else f'{user}:{MASK}'}{body[end:]}"
    query = _QUERY.sub(rf"\1{MASK}", query)
    return f"//{body}{mark}{query}"


def _masked_assignment(found: re.Match[str]) -> str:
    name, equals, value = found.groups()
    plain = value
    for _ in range(3):  # what was quoted twice is looked into too
        plain = unquote(plain)
    if is_secret_name(name) or (plain != value and has_secret(plain.replace(";", " "))):
        return f"{name}{equals}{MASK}"
    return found[0]


def _masked_flag(found: re.Match[str]) -> str:
    is_secret = is_secret_name(found[1]) and not _is_plain(found[1], found[2])
    return f"{found[1]}{MASK}" if is_secret else found[0]


def _masked_entry(found: re.Match[str]) -> str:
    quote, name, colon, value = found.groups()
    if not is_secret_name(name) or _is_plain(name, value.strip()):
        return found[0]
    return f'{quote}{name}{colon}"{MASK}"'  # quoted: *** alone would be an alias in YAML


def _without_blocks(text: str) -> str:
    """Return a text with `***` for the lines indented below the name of a secret."""
    lines = text.split("\n")
    kept: list[str] = []
    number = 0
    while number < len(lines):
        opening = _OPENING.fullmatch(lines[number])
        number += 1
        kept.append(lines[number - 1])
        if opening is None or not is_secret_name(opening[3]):
            continue
        end = number
        for index in range(number, len(lines)):
            line = lines[index]
            if line.strip() and len(line) - len(line.lstrip()) <= len(opening[1]):
                break
            end = index + 1 if line.strip() else end
        if end > number:
            indent, quote, name, colon = opening.groups()
            kept[-1] = f'{indent}{quote}{name}{colon} "{MASK}"'
            number = end
    return "\n".join(kept)


def _is_plain(name: str, value: str) -> bool:
    """Tell whether a value is no secret's: true, null, empty, a number that is no password."""
    if value in ("''", '""'):
        return True
    return bool(_PLAIN.fullmatch(value)) and not is_secret_number(name, value.strip("\"'"))
