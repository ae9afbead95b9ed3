"""Callbacks for a Lightning Trainer: policies, composition, checkpoints."""
