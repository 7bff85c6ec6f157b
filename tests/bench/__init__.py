"""Measurements, as ratios in one run, because machines are noisy.  Nothing here is a test and nothing is asserted."""
