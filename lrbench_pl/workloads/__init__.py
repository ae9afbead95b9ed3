"""Models, data modules, the LightningModules that train them, and their metrics."""
