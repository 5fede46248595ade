"""What the notebooks and the report run: the store of finished runs, studies, sweeps and the digits course."""
