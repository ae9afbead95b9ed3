"""What is trained: models, data, the LightningModule that joins them, and its metrics."""
