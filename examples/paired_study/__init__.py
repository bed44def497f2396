"""What study.py is made of: its settings, the data and networks, the runs, and the report."""
