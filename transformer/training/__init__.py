"""Training: the objective, the LightningModule, its callbacks, and checkpoint averaging."""
