"""CGRSeg for transformers: config, network and image processor for its `Auto` classes.

`import cgrseg` registers them (:mod:`cgrseg.transformers_import`).
"""
