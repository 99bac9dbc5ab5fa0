"""Builds, trains, evaluates and exports the network. Importing the package itself imports no torch."""
