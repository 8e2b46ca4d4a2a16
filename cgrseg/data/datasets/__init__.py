"""One file per dataset: its class table, its encoding, its folders."""
