#!/bin/sh
# A real Slurm cluster of two nodes on this machine, for tests/test_slurm.py:  start.sh [start | stop | status]
# Everything is under /tmp/slurm, but for the names of the nodes in /etc/hosts. No systemd, no cgroups, no accounting.
set -eu
here=/tmp/slurm
export SLURM_CONF=$here/slurm.conf
PATH=$PATH:/usr/sbin
source=$(cd "$(dirname "$0")" && pwd)

for program in munged slurmctld slurmd sbatch; do
    command -v $program > /dev/null || { echo "$program is not installed: apt-get install -y slurm-wlm munge" >&2; exit 2; }
done

running() { pid=$(cat "$here/$1.pid" 2> /dev/null) && kill -0 "$pid" 2> /dev/null; }

names() { grep -q '[[:space:]]node1 node2$' /etc/hosts; }

start() {
    mkdir -p -m 755 $here $here/state $here/spool.node1 $here/spool.node2
    sed "s|HERE|$here|g; s|USER|$(id -un)|g" "$source/slurm.conf" > $SLURM_CONF
    echo "Name=gpu File=$here/gpu[0-3]" > $here/gres.conf        # files in the place of devices, to be counted
    for number in 0 1 2 3; do ln -sf /dev/null $here/gpu$number; done
    names || echo '127.0.0.1 node1 node2' >> /etc/hosts
    [ -f $here/munge.key ] || (umask 077 && head -c 1024 /dev/urandom > $here/munge.key)
    running munged || munged --key-file $here/munge.key --socket $here/munge.socket --pid-file $here/munged.pid \
        --log-file $here/munged.log --seed-file $here/munge.seed
    running slurmctld || slurmctld
    for node in node1 node2; do
        running slurmd.$node || slurmd -N $node
    done
    for second in $(seq 30); do
        [ "$(sinfo -h -N -p low -t idle,mix,alloc 2> /dev/null | wc -l)" = 2 ] && break
        sleep 1
    done
    status
    echo "export SLURM_CONF=$SLURM_CONF"
}

stop() {
    ! running slurmctld || scancel --user "$(id -un)"
    for second in $(seq 20); do     # the jobs have KillWait seconds to end
        [ -n "$(squeue -h 2> /dev/null)" ] || break
        sleep 1
    done
    for daemon in slurmd.node1 slurmd.node2 slurmctld munged; do
        ! running $daemon || kill "$pid"
        while running $daemon; do sleep 0.2; done
    done
    if names; then
        hosts=$(grep -v '[[:space:]]node1 node2$' /etc/hosts)
        printf '%s\n' "$hosts" > /etc/hosts
    fi
    rm -rf $here
}

status() {
    running slurmctld || { echo "no cluster is running; start it with sh $0"; exit 1; }
    sinfo --Node --long
    squeue --long
}

case ${1:-start} in
    start | stop | status) "${1:-start}" ;;
    *) echo "usage: start.sh [start | stop | status]" >&2; exit 2 ;;
esac
