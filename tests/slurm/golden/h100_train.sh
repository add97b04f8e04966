#!/bin/bash

# Parameters
#SBATCH --account=vlm
#SBATCH --chdir='/shared/runs/glamm full'
#SBATCH --cpus-per-task=24
#SBATCH --dependency=afterok:17
#SBATCH --error='/shared/runs/glamm full/gcg/slurm/%j_0_log.err'
#SBATCH --exclude=h100-002,h100-017
#SBATCH --gres=gpu:h100:8
#SBATCH --job-name=orch-glamm-gcg-0123abcd
#SBATCH --kill-on-invalid-dep=yes
#SBATCH --mail-type=FAIL,TIME_LIMIT_90
#SBATCH --mem=2048000M
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=8
#SBATCH --open-mode=append
#SBATCH --output='/shared/runs/glamm full/gcg/slurm/%j_0_log.out'
#SBATCH --partition=preemptible
#SBATCH --qos=normal
#SBATCH --requeue
#SBATCH --signal=USR2@300
#SBATCH --time=1440

# setup
export NCCL_DEBUG=WARN
export NCCL_NET_GDR_LEVEL=PIX
export PYTHONPATH='/shared/runs/glamm full/code'${PYTHONPATH:+:$PYTHONPATH}

# command
export SUBMITIT_EXECUTOR=slurm
exec /shared/envs/orch/bin/python -P -u -m submitit.core._submit '/shared/runs/glamm full/gcg/slurm'

