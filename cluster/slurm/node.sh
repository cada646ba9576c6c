#!/usr/bin/env bash
# What cluster/slurm/run.sbatch runs on each node: `ray symmetric-run`, which starts Ray there and, on the first node, the raylit command.
#
#   node.sh HEAD_IP:PORT PID_FILE COMMAND [ARGUMENTS]
#
# Host names of cluster nodes often resolve to 127.0.1.1, where gloo and NCCL would then listen; so the network interface is named, per node: the
# one that has the head's address, or the one that leads there. PID_FILE is where the first node leaves the process id of raylit.
set -euo pipefail

address=$1 pid_file=$2
shift 2
head_ip=${address%:*}

interface=$(ip -o -4 address show | awk -v ip="$head_ip" '{ split($4, own, "/"); if (own[1] == ip) print $2 }')
if [[ -z $interface ]]; then
    interface=$(ip -o route get "$head_ip" | sed -n 's/.* dev \([^ ]*\).*/\1/p')
fi
export GLOO_SOCKET_IFNAME=${interface%@*}
export NCCL_SOCKET_IFNAME="=${interface%@*}" # "=": this name, not all that begin so

export RAY_ADDRESS=$address # or symmetric-run, which counts the nodes through ray.init(), would start a cluster of its own for that
resources=(--num-cpus="${SLURM_CPUS_PER_TASK:-$(nproc)}")
if [[ -n ${SLURM_GPUS_ON_NODE:-} ]]; then
    resources+=(--num-gpus="$SLURM_GPUS_ON_NODE")
fi
# temp-dir: /tmp/ray may be another user's.
# shellcheck disable=SC2016  # the inner shell expands
exec ray symmetric-run --address "$address" --min-nodes "$SLURM_NNODES" "${resources[@]}" --temp-dir="/tmp/ray-$SLURM_JOB_ID" --disable-usage-stats \
    -- bash -c 'echo $$ >"$0"; exec "$@"' "$pid_file" raylit "$@"
