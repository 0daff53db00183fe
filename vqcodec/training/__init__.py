"""Training in torch: transform, prior, export. The only part of vqcodec that imports torch (extra `train`)."""
