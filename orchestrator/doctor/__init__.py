"""`orch doctor`: whether this machine, or a cluster, is fit for runs; looked at before anything is launched."""
