"""Online composition of a policy: planner, segments, range test, snapshots."""
