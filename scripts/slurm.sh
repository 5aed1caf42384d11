#!/usr/bin/env bash
# A stage on several machines under Slurm, from the repository's folder:
#
#   sbatch --nodes 2 --gpus-per-node 8 scripts/slurm.sh stage3_ppo.py --config my.yaml
#
# One task a machine starts accelerate there. FILE (configs/accelerate/nodes_ddp.yaml) is the launch
# file, GPUS the processes a machine (all its GPUs), PYTHON the interpreter. SIGTERM comes three
# minutes before the time limit: the stage saves and ends. After that, after a lost machine and after
# a requeue the same sbatch goes on from the newest checkpoint, with another number of nodes too.
#SBATCH --job-name=tristage
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=TERM@180
set -euo pipefail
if [ $# -lt 1 ] || [ -z "${SLURM_JOB_ID:-}" ]; then
    echo "usage: sbatch --nodes N --gpus-per-node N scripts/slurm.sh STAGE.py [ARGUMENTS]" >&2
    exit 2
fi
gpus=${GPUS:-${SLURM_GPUS_ON_NODE:-1}}
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export launch_words="--config_file ${FILE:-configs/accelerate/nodes_ddp.yaml} \
--num_machines $SLURM_JOB_NUM_NODES --num_processes $((SLURM_JOB_NUM_NODES * gpus)) \
--main_process_ip $first --main_process_port $((20000 + SLURM_JOB_ID % 20000))"
export python=${PYTHON:-python}
# --kill-on-bad-exit: a machine whose launcher fails ends the others.
srun --kill-on-bad-exit=1 bash -c \
    '$python scripts/check_nodes.py $launch_words --machine_rank $SLURM_NODEID'
exec srun --kill-on-bad-exit=1 bash -c \
    'exec $python -m accelerate.commands.launch --quiet $launch_words --machine_rank $SLURM_NODEID "$@"' \
    launch "$@"
