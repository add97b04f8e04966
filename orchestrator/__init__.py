"""How a recipe runs: from YAML to finished, verified artifacts. Knows no model and no cluster."""
