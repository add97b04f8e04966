#!/bin/bash

# Parameters
#SBATCH --account=vision-language
#SBATCH --chdir='/shared/runs/glamm full'
#SBATCH --constraint=a100_80gb
#SBATCH --cpus-per-task=16
#SBATCH --dependency=afterok:17:18
#SBATCH --error='/shared/runs/glamm full/gcg/slurm/%j_0_log.err'
#SBATCH --exclude=gpu-12,gpu-3
#SBATCH --gpus-per-node=8
#SBATCH --job-name=orch-glamm-gcg-0123abcd
#SBATCH --kill-on-invalid-dep=yes
#SBATCH --mem=1024000M
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=8
#SBATCH --open-mode=append
#SBATCH --output='/shared/runs/glamm full/gcg/slurm/%j_0_log.out'
#SBATCH --partition=gpu
#SBATCH --requeue
#SBATCH --signal=USR2@300
#SBATCH --time=1440

# setup
module purge
module load cuda/12.8
export HF_HOME=/shared/cache/huggingface
export HF_HUB_OFFLINE=1
export NCCL_IB_HCA=mlx5
export PYTHONPATH='/shared/runs/glamm full/code'${PYTHONPATH:+:$PYTHONPATH}

# command
export SUBMITIT_EXECUTOR=slurm
exec /envs/orch/bin/python -P -u -m submitit.core._submit '/shared/runs/glamm full/gcg/slurm'

