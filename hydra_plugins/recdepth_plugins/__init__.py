"""What Hydra finds by name: launchers and sweepers; the work is done in recdepth.sweeps, imported when it is needed."""
