"""The control side of ports: open, probe, configure, describe. The datapath has their other half."""
