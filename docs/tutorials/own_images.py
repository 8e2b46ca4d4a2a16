# %% [markdown]
# # From a folder of images to a report
#
# Train CGRSeg on a folder of images and label maps, measure it, label new images with it, and
# write a report. Twenty-four drawn scenes stand for your own images, so that this runs in a few
# minutes on two CPU cores. Run it with `python docs/tutorials/own_images.py FOLDER`, or open it as
# a notebook (Jupytext, VS Code and PyCharm read this form).

# %%
import shutil
import sys
from pathlib import Path

import cgrseg
from cgrseg.data.check import check_dataset
from cgrseg.data.synthetic import write_dataset
from cgrseg.inference import predict_folder
from cgrseg.reporting import write_run_report

folder = Path(sys.argv[1] if len(sys.argv) == 2 else "tutorial")

# %% [markdown]
# ## 1. Lay out the images
#
# One folder of images and one of label maps for each split, files of the same names, and
# `classes.txt` with one class name a line in id order. A label map is a PNG whose pixel values
# are class ids; 255 is ignored.

# %%
scenes = write_dataset(folder / "scenes", train=16, val=8, size=(96, 128))
data = folder / "data"
for split, source in (("train", "training"), ("val", "validation")):
    for kind in ("images", "annotations"):
        shutil.copytree(scenes / kind / source, data / kind / split, dirs_exist_ok=True)
shutil.copy(scenes / "classes.txt", data / "classes.txt")

# %% [markdown]
# ## 2. Check the folder before training on it
#
# The check reads every label map and names what would spoil a training: missing labels, ids out
# of range, images that cannot be read. These label maps begin at 1, with 0 for unlabeled pixels,
# which the setting `data.zero_is_ignore` says.

# %%
config = cgrseg.load_config(
    "cgrseg-t_custom",
    {
        "name": "tutorial",
        "work_dir": str(folder / "run"),
        "data.root": str(data),
        "data.zero_is_ignore": True,
        "data.workers": 0,
        "augment.scale": (128, 96),
        "augment.crop_size": (64, 64),
        "test.scale": (128, 96),
        "train.batch_size": 4,
        "train.eval_interval": 20,
        "schedule.max_iters": 20,
        "schedule.warmup_iters": 2,
        "optimizer.lr": 1e-3,
        "model.pretrained": None,
    },
)
report = check_dataset(config.data)
print(report.text())

# %% [markdown]
# ## 3. Train
#
# Twenty iterations show the way; a real run has thousands. Interrupt it as you like:
# `cgrseg.train(config, auto_resume=True)` goes on exactly where it stopped.

# %%
run = cgrseg.train(config, auto_resume=True)

# %% [markdown]
# ## 4. Measure
#
# The metrics come from one confusion matrix over the whole validation split.

# %%
checkpoint = run.best or run.latest
result = cgrseg.evaluate(config, checkpoint)
print(f"mIoU: {100 * result.scores.mean_iou:.1f} %")

# %% [markdown]
# ## 5. Label new images
#
# A prediction has the image's own size. `predict_folder` writes label maps and overlays.

# %%
predictor = cgrseg.Predictor.from_pretrained(checkpoint)
images = sorted((data / "images" / "val").iterdir())
prediction = predictor(images[0])
print(prediction)
predict_folder(predictor, images, folder / "predictions", checkpoint=checkpoint)

# %% [markdown]
# ## 6. Write the report
#
# One HTML file with curves, scores per class, confusions and the worst images.

# %%
page = write_run_report(run.work_dir, config, result, predictor)
print(page)
