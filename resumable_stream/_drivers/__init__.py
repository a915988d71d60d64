"""Carry bytes, sleep and save. The core makes all decisions."""
