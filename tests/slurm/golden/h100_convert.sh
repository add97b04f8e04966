#!/bin/bash

# Parameters
#SBATCH --account=vlm
#SBATCH --chdir='/shared/runs/glamm full'
#SBATCH --cpus-per-task=8
#SBATCH --error='/shared/runs/glamm full/gcg/slurm/%j_0_log.err'
#SBATCH --exclude=h100-017
#SBATCH --job-name=orch-glamm-gcg-0123abcd
#SBATCH --kill-on-invalid-dep=yes
#SBATCH --mail-type=FAIL,TIME_LIMIT_90
#SBATCH --mem=85334M
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --open-mode=append
#SBATCH --output='/shared/runs/glamm full/gcg/slurm/%j_0_log.out'
#SBATCH --partition=batch
#SBATCH --qos=normal
#SBATCH --requeue
#SBATCH --signal=USR2@300
#SBATCH --time=91

# setup
export NCCL_DEBUG=WARN
export NCCL_NET_GDR_LEVEL=PIX
export PYTHONPATH='/shared/runs/glamm full/code'${PYTHONPATH:+:$PYTHONPATH}

# command
export SUBMITIT_EXECUTOR=slurm
exec /shared/envs/orch/bin/python -P -u -m submitit.core._submit '/shared/runs/glamm full/gcg/slurm'

