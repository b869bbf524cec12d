#!/bin/bash
# A run on Slurm that is requeued before its time is up, and goes on where it was:
#
#     sbatch launch/slurm.sh TASK DIR [key=value ...]
#
# Ten minutes before the time limit Slurm sends SIGTERM to this script, which has it sent to the processes of the run (not
# to srun, which would kill them). The step is finished and saved, the job queued again, and when it starts again the run
# in DIR is resumed. A run that ends by itself, or fails, is not queued again. Set nodes, GPUs and time for your cluster,
# here or as options of sbatch.
#SBATCH --job-name=mmrl
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=04:00:00
#SBATCH --signal=B:TERM@600
#SBATCH --requeue
#SBATCH --open-mode=append
set -u
task=$1 output=$2
shift 2

MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export MASTER_ADDR MASTER_PORT="${MASTER_PORT:-29500}" PROCESSES="${PROCESSES:-${SLURM_GPUS_ON_NODE:-1}}"
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT="${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-540}" # a step and its checkpoint

resume=()
if [ -e "$output/config.yaml" ]; then resume=(--resume); fi

stopped=
srun --kill-on-bad-exit=0 bash -c 'exec torchrun --nnodes "$SLURM_NNODES" --node_rank "$SLURM_NODEID" \
    --nproc_per_node "$PROCESSES" --master_addr "$MASTER_ADDR" --master_port "$MASTER_PORT" -m mmrl_core train "$@"' \
    train "$task" "$@" --output "$output" "${resume[@]}" &
run=$!
trap 'stopped=yes; scancel --signal=TERM "$SLURM_JOB_ID"' TERM
wait "$run"
code=$?
while kill -0 "$run" 2>/dev/null; do # a trap ends `wait` early
    wait "$run"
    code=$?
done

if [ -n "$stopped" ] && [ "$code" -ne 0 ]; then
    echo "stopped by Slurm; queued again to go on from $output"
    exec scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
