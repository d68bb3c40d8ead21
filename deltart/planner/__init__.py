"""What an artifact needs on a device and how fast it can be there, from its manifest and a table of devices."""
