"""Made scenes of shapes, written in the raw layouts of real data sets."""
