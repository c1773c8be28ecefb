"""Runs as the API shows them: the graphs they are made of, and the views of live and archived ones."""
