"""Clusters of the image on one machine: drivers, machines, topologies."""
