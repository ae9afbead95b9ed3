"""Locks on files, which the operating system releases when their process dies."""

from __future__ import annotations

from pathlib import Path

from filelock import FileLock, Timeout

# Errors of a file system without locks, on which everything works without.
NO_LOCKS = (OSError, NotImplementedError)


def lock_of(path: Path) -> FileLock:
    """Return the lock on a file; never a soft one, which would outlive a killed process."""
    return FileLock(path, fallback_to_soft=False)


def is_held(path: Path) -> bool:
    """Return whether a process holds the lock on a file."""
    lock = lock_of(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    except NO_LOCKS:
        return False
    lock.release()
    return False
