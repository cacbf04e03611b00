"""The build tool: command line, configuration, build stages, flashing."""
