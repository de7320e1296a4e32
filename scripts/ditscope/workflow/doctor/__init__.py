"""Verification of a whole results tree: what is missing, damaged, left over, or made with other settings."""
