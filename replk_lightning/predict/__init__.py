r"""Looking at pictures with a trained net of any of the three tasks.

```sh
python -m replk_lightning predict --ckpt runs/fit/lightning_logs/version_0/checkpoints/last.ckpt \
  --images /data/photos --out found
```

It writes `predictions.json` (classes and probabilities; segments with their share of the pixels; objects with score,
box and mask as COCO's runs) and, for segmentation and detection, an overlay of each picture at its own size, with the
names of classes where the data had names. What cannot be read is listed and stops nothing.
"""
