"""Callbacks for a Lightning Trainer: learning-rate policies, online composition, checkpoints, progress."""
