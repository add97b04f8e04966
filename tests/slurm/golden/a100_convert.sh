#!/bin/bash

# Parameters
#SBATCH --account=vision-language
#SBATCH --chdir='/shared/runs/glamm full'
#SBATCH --cpus-per-task=8
#SBATCH --error='/shared/runs/glamm full/gcg/slurm/%j_0_log.err'
#SBATCH --job-name=orch-glamm-gcg-0123abcd
#SBATCH --kill-on-invalid-dep=yes
#SBATCH --mem=64000M
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --open-mode=append
#SBATCH --output='/shared/runs/glamm full/gcg/slurm/%j_0_log.out'
#SBATCH --partition=cpu
#SBATCH --requeue
#SBATCH --signal=USR2@300
#SBATCH --time=91

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

