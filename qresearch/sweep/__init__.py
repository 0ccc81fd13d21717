"""Sweeps: from a configuration to trials, from trials to populations, from populations to records."""
