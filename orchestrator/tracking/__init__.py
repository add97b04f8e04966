"""Tells MLflow what the journals say: in a process of its own, so that training never waits for a server.

Training appends to `journal.jsonl`, the supervisor keeps `state.json`; both are files, and both are enough. One
forwarder a run reads them and brings MLflow up to date, noting in `tracking.json` what it has told. Whatever is not
told yet, because the server was away or the forwarder was killed, is told by the next forwarder or by `orch sync`.

    story.py       what MLflow should say of a run, read from the run's folder
    journals.py    the part of a journal that was not delivered yet, in batches
    ledger.py      what MLflow has been told: tracking.json
    spent.py       where the hours went, as metrics
    store.py       MLflow itself; the only module that imports it
    teller.py      compares story and ledger and tells what is missing
    origin.py      what a model was made from, for its page
    decision.py    whether an export may become a version of a registered model
    registrar.py   makes it one, once
    pace.py        how often to look for what is new
    forwarder.py   does so once, or for as long as the run lasts
    beside.py      has others told beside MLflow, each by a process of its own
    eventfiles.py  TensorBoard; the only module that imports it
    wandbruns.py   Weights & Biases; the only module that imports it
    addresses.py   where MLflow lives, without passwords
"""
