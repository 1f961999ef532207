"""Measurements; every program prints what it measured, on what machine, beside a control."""
