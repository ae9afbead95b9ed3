"""Many runs: launchers, the places where jobs run, and the live view."""
