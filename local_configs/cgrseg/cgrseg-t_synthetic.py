"""CGRSeg-T on the embedded scenes of `cgrseg data synth`: what `cgrseg demo` trains."""

from cgrseg.config import preset

config = preset("cgrseg_t", "synthetic")
