"""The experiments of notebooks and report: one configuration in, one stored `Run` out."""
