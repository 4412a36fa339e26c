"""Datasets: what there is (catalog), how it is read (coco, nuscenes, depth), shown and batched; the world."""
