"""The compiled core: window, rings, ports and worker."""
