"""The families of networks that the panel trains: data, networks, settings."""
