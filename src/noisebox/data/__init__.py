"""Datasets: what there is (catalog), how it is read (coco), shown (transforms) and batched (loader); the world."""
