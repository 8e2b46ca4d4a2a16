"""Where pixels come from: catalogue, files, transforms, samplers, datasets."""
