"""Online composition of a policy during training: planner, segments, range test, snapshots."""
