#!/usr/bin/env bash
# Prints the lines of a launcher's file that still hold a placeholder of this repository, and ends with 1 if there are any.
#
#   cluster/ray/filled.sh cluster/ray/aws.yaml && ray up cluster/ray/aws.yaml
#
# With placeholders AWS and Google refuse the first node minutes later, in words that name none of them. Addresses 192.0.2.x belong to nobody (RFC 5737).
set -euo pipefail

file=${1:?usage: cluster/ray/filled.sh FILE}
if lines=$(grep --line-number --extended-regexp '(ami|sg|fs)-0123456789abcdef0|\b123456789012\b|\bmy-project\b|\b192\.0\.2\.[0-9]+' "$file"); then
    printf '%s is not filled in (cluster/README.md says with what):\n%s\n' "$file" "$lines" >&2
    exit 1
fi
