"""How a policy is composed during training: planner, segments, range test, snapshots."""
