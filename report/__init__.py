"""Chains of commands, and the HTML page that shows what came out."""
