"""Where a recipe runs when it runs on a Slurm cluster. Knows no model."""
