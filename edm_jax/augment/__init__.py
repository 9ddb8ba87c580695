"""Non-leaking augmentation (EDM section F.2); it runs inside the training step."""
