"""Stages that train in seconds and show which sample was seen when: what `orch drill` rehearses failures on."""
