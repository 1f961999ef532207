"""The image, made and run without a container engine: `python -m tests.container` as root on Debian.

A fresh Debian tree stands in for the base image; the Dockerfile's own steps are executed in it, and its entry point is
started in namespaces of its own, as the image's user on a read-only root, much as an engine would.
"""
