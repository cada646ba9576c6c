#!/usr/bin/env bash
# Makes the secrets that cluster/docker/compose.yaml mounts, as random values in cluster/docker/secrets/, which git ignores. Those that are there stay.
#
#   cluster/docker/secrets.sh
#
# The folder is closed to other users of this machine. The files in it are not: in the containers they are read under other user ids.
set -euo pipefail
umask 022

folder=$(dirname "${BASH_SOURCE[0]}")/secrets
mkdir -p "$folder"
chmod 700 "$folder"

for name in ray_token postgres_password s3_key s3_secret mlflow_admin_password mlflow_flask_key mlflow_writer_password; do
    if [[ ! -s $folder/$name ]]; then
        python3 -c 'import secrets; print(secrets.token_hex(24), end="")' >"$folder/$name"
    fi
done
# What MLflow's client reads: ~/.mlflow/credentials. Of the account that writes runs, not of the admin.
printf '[mlflow]\nmlflow_tracking_username = writer\nmlflow_tracking_password = %s\n' "$(<"$folder/mlflow_writer_password")" >"$folder/mlflow_credentials"
