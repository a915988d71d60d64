"""Carry bytes, sleep, save. No decisions: those are the core's."""
