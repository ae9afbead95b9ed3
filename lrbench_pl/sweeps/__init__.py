"""Many runs: what each left in its folder, where they run, how it shows."""
