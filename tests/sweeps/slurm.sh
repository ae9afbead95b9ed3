#!/bin/sh
# Start a SLURM of one node on this machine for the tests (root, Debian's slurm-wlm and munge). The partition `high`
# pre-empts and requeues the jobs of `main`.
set -eu
sinfo -h -o %T 2>/dev/null | grep -q idle && exit 0
host=$(hostname)
mkdir -p /var/spool/slurmctld /var/spool/slurmd /var/log/slurm /run/munge /etc/slurm
grep -q " $host" /etc/hosts || echo "127.0.0.1 $host" >> /etc/hosts
cat > /etc/slurm/slurm.conf <<C
ClusterName=one
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
AuthType=auth/munge
StateSaveLocation=/var/spool/slurmctld
SlurmdSpoolDir=/var/spool/slurmd
SlurmctldPidFile=/run/slurmctld.pid
SlurmdPidFile=/run/slurmd.pid
SlurmctldLogFile=/var/log/slurm/slurmctld.log
SlurmdLogFile=/var/log/slurm/slurmd.log
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=1,sched_interval=2,bf_interval=2
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
PreemptMode=REQUEUE
PreemptType=preempt/partition_prio
NodeName=$host NodeAddr=127.0.0.1 CPUs=$(nproc) State=UNKNOWN
PartitionName=main Nodes=$host Default=YES MaxTime=INFINITE State=UP PriorityTier=1
PartitionName=high Nodes=$host MaxTime=INFINITE State=UP PriorityTier=10
C
[ -s /etc/munge/munge.key ] || {
  dd if=/dev/urandom bs=1 count=1024 of=/etc/munge/munge.key 2>/dev/null
  chmod 400 /etc/munge/munge.key
}
chown munge:munge /etc/munge/munge.key /run/munge /var/lib/munge /var/log/munge
munge -n 2>/dev/null | unmunge >/dev/null 2>&1 || su -s /bin/sh munge -c munged
slurmctld
slurmd
for _ in 1 2 3 4 5 6 7 8 9 10; do
  sinfo -h -o %T 2>/dev/null | grep -q idle && exit 0
  sleep 1
done
exit 1
