"""The outer search over wirings, synapses and rates, by short real runs (the paper leaves it to "neural architecture
search"): ``reclra search``."""
