"""Models of our own, written as RecBole's are: a file named like its class, defaults in a YAML."""
