"""Whether models of other exporters can be explained; each exporter in an environment of its own."""
