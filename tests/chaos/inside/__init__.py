"""A folder for PYTHONPATH: Python loads its sitecustomize.py when it starts."""
