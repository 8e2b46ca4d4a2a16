"""Fine-tuning on a few hundred images of your own, from a trained checkpoint.

`load_from` is the checkpoint to start from; another number of classes keeps all of it
but the classifier.  The folder is laid out as for cgrseg-t_custom.py.  Half the published
rate, 4,000 iterations and an evaluation every 250 (the best is kept) suit a small set.
"""

from cgrseg.config import preset

config = preset(
    "cgrseg_t",
    "finetune",
    data={"root": "data/custom"},
    train={"load_from": "checkpoints/cgrseg-t_ade20k_160k.pth"},
)
