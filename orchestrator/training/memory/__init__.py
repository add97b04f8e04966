"""What a training stage needs of each GPU, and what it costs, from its configuration alone.

Planning asks `estimate.py` and loads no torch: what only torch can say (sizes of parameters, bytes alive in a forward
and backward pass, floating point operations) a child process finds once on torch's meta device, without weights, and it
is kept by fingerprint (`asking.py`, `measure.py`, `tape.py`). The rest is arithmetic (`zero.py`, `advice.py`).
"""
