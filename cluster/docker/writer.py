# The account with which Ray's nodes and jobs write to MLflow, made by the server of
# cluster/docker/compose.yaml when it starts.
#
#   MLFLOW_AUTH_ADMIN_PASSWORD=... python writer.py http://127.0.0.1:5000 PASSWORD_FILE MARK_FILE
#
# `writer` makes experiments and writes those, and reads others: it is no admin. MARK_FILE is
# written once it is there with that password, also after the password was changed; the server
# counts as healthy only then.
import base64
import json
import os
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

USER = "writer"


def call(method: str, url: str, body: dict[str, str] | None = None) -> int:
    """Return the status of an answer; 0: nobody has answered."""
    login = f"admin:{os.environ['MLFLOW_AUTH_ADMIN_PASSWORD']}".encode()
    headers = {
        "Authorization": f"Basic {base64.b64encode(login).decode()}",
        "Content-Type": "application/json",
    }
    data = None if body is None else json.dumps(body).encode()
    try:
        with urllib.request.urlopen(
            urllib.request.Request(url, data, headers, method=method), timeout=30
        ) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


def main(server: str, password_file: str, mark: str) -> None:
    """Make the user, or give it its password anew."""
    Path(mark).unlink(missing_ok=True)
    while call("GET", f"{server}/health") != 200:
        time.sleep(1)
    users = f"{server}/api/2.0/mlflow/users"
    account = {"username": USER, "password": Path(password_file).read_text().strip()}
    exists = call("GET", f"{users}/get?username={USER}") == 200
    done = (
        call("PATCH", f"{users}/update-password", account)
        if exists
        else call("POST", f"{users}/create", account)
    )
    if done != 200:
        sys.exit(f"MLflow has not made the user {USER}: status {done}.")
    Path(mark).touch()


main(*sys.argv[1:])
